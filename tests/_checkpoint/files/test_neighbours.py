"""Several states in one directory: a save replaces its own file, and never a part of another state."""

import os
import shutil

import mlx.core as mx
import pytest

from purestep.checkpoint import load, save
from tests._checkpoint.states import ONE, TWO
from tests.trees import same_bits

THREE = {**ONE, "c": mx.zeros(10)}
PARTS = [f"m-0000{number}-of-00002.safetensors" for number in (1, 2)]


def divide(path, state):
    save(path, state, shard_bytes=40)


def contents_of(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}


def whole(path):
    save(path, TWO)


def foreign(path):
    mx.save_safetensors(str(path), TWO)


def of_hugging_face(path):
    mx.save_safetensors(str(path), TWO, {"format": "pt"})


def notes(path):
    path.write_text("not a safetensors file")


def link_to_nothing(path):
    path.symlink_to("nowhere")


def part_in_use(path):
    """A part of the right name, which an index of another name lists."""
    divide(path.parent / "m", TWO)
    for name in PARTS:
        if name != path.name:
            (path.parent / name).unlink()
    (path.parent / "m.safetensors.index.json").rename(path.parent / "other.safetensors.index.json")


def state_of_that_name(path):
    """A state of two files, the name of which is that of the part."""
    divide(path.parent / path.stem, TWO)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(
    "neighbour", [whole, foreign, of_hugging_face, notes, link_to_nothing, part_in_use, state_of_that_name]
)
def test_a_divided_save_replaces_no_file_of_another_state(tmp_path, neighbour, name):
    neighbour(tmp_path / name)
    before = contents_of(tmp_path)
    with pytest.raises(FileExistsError, match=rf"^checkpoint\.save: .*{name[:-12]}.*another name"):
        divide(tmp_path / "m.safetensors", ONE)
    assert contents_of(tmp_path) == before


def test_a_directory_of_a_parts_name_is_left_alone(tmp_path):
    (tmp_path / PARTS[1]).mkdir()
    with pytest.raises(OSError, match=rf"^checkpoint\.save: .*{PARTS[1]}"):
        divide(tmp_path / "m", ONE)
    assert os.listdir(tmp_path) == [PARTS[1]]


def test_a_save_that_was_killed_is_replaced_and_its_other_parts_stay(tmp_path):
    for older, newer in ((THREE, ONE), (ONE, THREE), (ONE, TWO)):
        divide(tmp_path / "m", older)
        (tmp_path / "m.safetensors.index.json").unlink()
        parts = {
            name: data for name, data in contents_of(tmp_path).items() if f"of-0000{len(newer)}" not in name
        }
        divide(tmp_path / "m.safetensors", newer)
        assert same_bits(load(tmp_path / "m"), newer)
        assert parts.items() <= contents_of(tmp_path).items()
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


def test_one_file_never_replaces_a_part_of_a_divided_state(tmp_path):
    divide(tmp_path / "m", ONE)
    for name in PARTS:
        with pytest.raises(
            FileExistsError, match=r"^checkpoint\.save: .* part of .*m\.safetensors\.index\.json "
        ):
            save(tmp_path / name, TWO)
    assert same_bits(load(tmp_path / "m"), ONE)


def test_names_that_overlap_are_different_states(tmp_path):
    states = {"m": ONE, "m-00001-of-00003": TWO, "mm": THREE, "m.safetensors-2": ONE, ".m": TWO, "m*": THREE}
    for name, state in states.items():
        divide(tmp_path / name, state)
    save(tmp_path / "m-00001-of-00009.safetensors", TWO)
    for name, state in {**states, "m-00001-of-00009.safetensors": TWO}.items():
        assert same_bits(load(tmp_path / name), state)


def test_a_stray_index_beside_a_state_is_one_error(tmp_path):
    save(tmp_path / "m.safetensors", ONE)
    index = tmp_path / "m.safetensors.index.json"
    for text in ("", "{}", '{"weight_map": {"a": "m.safetensors"}}'):
        index.write_text(text)
        with pytest.raises(ValueError, match=r"^checkpoint\.load: .*m\.safetensors\.index\.json .*one name"):
            load(tmp_path / "m.safetensors")
        with pytest.raises(
            FileExistsError, match=r"^checkpoint\.save: .*already holds m\.safetensors\.index"
        ):
            save(tmp_path / "m.safetensors", TWO)
    index.unlink()
    assert same_bits(load(tmp_path / "m.safetensors"), ONE)
