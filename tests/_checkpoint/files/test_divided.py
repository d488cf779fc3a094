"""States in several files with an index: found by one name, and nothing outside their directory."""

import json

import mlx.core as mx
import pytest
from safetensors import safe_open

from purestep.checkpoint import CorruptError, load, save
from tests._checkpoint.states import ONE, TWO
from tests.trees import same_bits


def test_a_large_state_is_divided_with_an_index_that_the_ecosystem_reads(tmp_path):
    value = {"a": mx.arange(10), "b": {"c": mx.ones((2, 3)), "d": None}, "e": mx.zeros(100)}
    save(tmp_path / "m.safetensors", value, shard_bytes=64)
    names = [f"m-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert sorted(file.name for file in tmp_path.iterdir()) == [*names, "m.safetensors.index.json"]
    index = json.loads((tmp_path / "m.safetensors.index.json").read_text())
    assert index["weight_map"] == {"a": names[0], "b.c": names[0], "e": names[1]}
    assert index["metadata"]["total_size"] == 4 * (10 + 6 + 100)
    for key, name in index["weight_map"].items():
        with safe_open(tmp_path / name, framework="numpy") as file:
            assert key in file.keys()  # noqa: SIM118, it is no dict
    assert same_bits(load(tmp_path / "m.safetensors.index.json", like=value), value)
    with pytest.raises(
        FileExistsError, match=r"^checkpoint\.save: .*already holds m\.safetensors\.index\.json"
    ):
        save(tmp_path / "m.safetensors", value, shard_bytes=64)
    (tmp_path / names[1]).unlink()
    with pytest.raises(CorruptError, match="/m-00002-of-00002.safetensors is missing$"):
        load(tmp_path / "m.safetensors.index.json", like=value)


def test_an_index_that_points_elsewhere_is_refused(tmp_path):
    save(tmp_path / "m.safetensors", {"a": mx.arange(10), "b": mx.arange(10)}, shard_bytes=40)
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(index.read_text().replace('"m-00001', '"../m-00001'))
    with pytest.raises(
        ValueError,
        match="^checkpoint.load: .*index.json names '../m-00001-of-00002.safetensors', .*directory",
    ):
        load(index)
    for text in ("[]", "{", "[" * 100_000, '{"metadata":{},"weight_map":{}}'):
        index.write_text(text)
        with pytest.raises(
            CorruptError, match="m.safetensors.index.json (is damaged: .*not an index|was not written)"
        ):
            load(index)


def test_one_name_never_stands_for_two_states(tmp_path):
    file, index = tmp_path / "m.safetensors", tmp_path / "m.safetensors.index.json"
    save(file, ONE)
    for name in (file, tmp_path / "m"):
        with pytest.raises(FileExistsError, match=r"^checkpoint\.save: .*already holds m\.safetensors: "):
            save(name, TWO, shard_bytes=40)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.safetensors"]
    file.unlink()
    save(file, TWO, shard_bytes=40)
    with pytest.raises(
        FileExistsError, match=r"^checkpoint\.save: .*already holds m\.safetensors\.index\.json"
    ):
        save(file, ONE)
    assert same_bits(load(file), TWO)
    save(tmp_path / "n.safetensors", ONE)
    (tmp_path / "n.safetensors").rename(file)
    with pytest.raises(ValueError, match="m.safetensors and m.safetensors.index.json .*one name"):
        load(file)
    assert same_bits(load(index), TWO)


def test_files_of_a_divided_save_that_was_killed_do_not_block_the_next(tmp_path):
    save(tmp_path / "m.safetensors", ONE, shard_bytes=40)
    (tmp_path / "m.safetensors.index.json").unlink()
    save(tmp_path / "m.safetensors", TWO, shard_bytes=40)
    assert same_bits(load(tmp_path / "m.safetensors", like=ONE), TWO)


def test_one_of_several_files_names_the_index(tmp_path):
    save(tmp_path / "m.safetensors", ONE, shard_bytes=40)
    with pytest.raises(
        ValueError, match=r"m-00001-of-00002\.safetensors .*one of several .*m\.safetensors\.index\.json"
    ):
        load(tmp_path / "m-00001-of-00002.safetensors")


@pytest.mark.parametrize("name", ["..", ".", "", "/etc/passwd", "a/b", "a\0"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    save(tmp_path / "m.safetensors", ONE, shard_bytes=40)
    index = tmp_path / "m.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["a"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="^checkpoint.load: .*index.json names .*not in its directory"):
        load(index)


@pytest.mark.parametrize("header", [3, [1], {"format": 2}, None, ["[" * 50]])
def test_an_index_whose_header_is_no_text_is_refused(tmp_path, header):
    index = tmp_path / "m.safetensors.index.json"
    for content in (
        {"metadata": {"purestep": header}, "weight_map": {}},
        {"metadata": {}, "weight_map": {"a": 3}},
    ):
        index.write_text(json.dumps(content))
        with pytest.raises(
            CorruptError, match="m.safetensors.index.json (is damaged: .*not an index|was not written)"
        ):
            load(index)
