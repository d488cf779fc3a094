"""Stored arrays are read a few at a time, and an index is read in bounds, whoever wrote it."""

import json
import os

import mlx.core as mx
import pytest

from purestep import tree
from purestep._checkpoint.inspecting import arrays
from purestep._checkpoint.inspecting.opening import open_arrays
from purestep.checkpoint import CorruptError, load, load_weights, save
from tests.training import start


def test_arrays_are_read_a_few_at_a_time(monkeypatch, tmp_path):
    monkeypatch.setattr(arrays, "_TOGETHER", 40)
    save(tmp_path / "s.safetensors", start())
    stored = open_arrays("test", tmp_path / "s.safetensors")
    asked = []
    watched = stored._replace(read=lambda paths: asked.append(paths) or stored.read(paths))
    found = {path: array for path, array, problem in arrays.read_all("test", watched, list(stored.leaves))}
    assert list(found) == tree.paths(start())
    assert len(asked) > 1
    assert max(sum(found[path].nbytes for path in group) for group in asked if len(group) > 1) <= 40


WHOLE = '{"metadata":{"total_size":8},"weight_map":{"w":"m.safetensors"}}'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (WHOLE.replace("8", "[" * 100_000), "it is cut or too deep"),
        (WHOLE.replace("8", "NaN"), "its 'total_size' is NaN, which is not JSON"),
        (WHOLE.replace("8", "-Infinity"), "its 'total_size' is -Infinity, which is not JSON"),
        (WHOLE.replace("8", '8,"total_size":8'), "'total_size' occurs twice in its metadata"),
        (WHOLE.replace('"w":', '"w":"m.safetensors","w":'), "a name occurs twice"),
        (WHOLE.replace('"weight', '"weight_map":{},"weight'), "it has two members weight_map"),
        (WHOLE.replace('"m.safetensors"', "NaN"), "an array is in no file"),
        (WHOLE.replace('"m.safetensors"', '["m.safetensors"]'), "an array is in no file"),
        (WHOLE.replace("}}", ""), "it is cut or too deep"),
        ("", "it is no object"),
    ],
)
def test_a_hostile_index_is_refused_in_plain_words(text, reason, tmp_path):
    mx.save_safetensors(str(tmp_path / "m.safetensors"), {"w": mx.ones(2)})
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(WHOLE)
    assert list(open_arrays("test", index).leaves) == ["w"]
    index.write_text(text)
    for read in (
        lambda: open_arrays("test", index),
        lambda: load(index),
        lambda: load_weights(index, like={"w": mx.ones(2)}),
    ):
        with pytest.raises(CorruptError) as caught:
            read()
        assert f"{index} is damaged: it is not an index of safetensors files ({reason})" in str(caught.value)


def test_a_huge_index_is_refused_before_it_is_read(tmp_path):
    index = tmp_path / "m.safetensors.index.json"
    index.touch()
    os.truncate(index, 3_000_000_000)  # a sparse file, which takes no room on the disk
    for read in (lambda: open_arrays("test", index), lambda: load(index)):
        with pytest.raises(CorruptError, match=r"index\.json .*damaged: .*3000000000 bytes"):
            read()


def test_a_missing_file_of_an_index_is_a_problem_of_its_arrays_only(tmp_path):
    state = {"a": mx.ones(10), "b": mx.zeros(10)}
    save(tmp_path / "m.safetensors", state, shard_bytes=40)
    (tmp_path / "m-00001-of-00002.safetensors").unlink()
    stored = open_arrays("test", tmp_path / "m.safetensors.index.json")
    found = {path: (array, problem) for path, array, problem in arrays.read_all("test", stored, ["a", "b"])}
    assert found["a"][0] is None
    assert "is missing" in found["a"][1]
    assert found["b"][0].tolist() == [0.0] * 10


def test_an_index_that_lost_its_header_is_damage(tmp_path):
    save(tmp_path / "m.safetensors", {"a": mx.ones(10), "b": mx.zeros(10)}, shard_bytes=40)
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": json.loads(index.read_text())["weight_map"]}))
    with pytest.raises(CorruptError, match="index.json .*header"):
        open_arrays("test", index)
