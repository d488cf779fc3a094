"""Paths, keys, shapes and metadata that nobody expects: stored and given back, or refused in one sentence."""

import os

import mlx.core as mx
import pytest

from purestep import replay, tree
from purestep.checkpoint import Checkpointer, from_bytes, load, load_weights, save, save_weights, to_bytes
from tests.trees import same_bits

STATE = {"w": mx.ones(3)}
USES = {
    "checkpoint.save": lambda path: save(path, STATE),
    "checkpoint.load": load,
    "checkpoint.load_weights": lambda path: load_weights(path, like=STATE),
    "checkpoint.save_weights": lambda path: save_weights(path, STATE),
    "Checkpointer": Checkpointer,
    "replay.load": replay.load,
    "replay.record": lambda path: replay.record(lambda state, batch: (state, {}), path),
}


@pytest.mark.parametrize("where", USES)
def test_paths_that_cannot_be_are_refused(where, tmp_path):
    strange = os.fsdecode(b"\xff")
    for path in (tmp_path / strange, tmp_path / strange / "s.safetensors", f"{tmp_path}/\ud800"):
        with pytest.raises(ValueError, match=rf"^{where}: path .* UTF-8, .*got '.*\\ud"):
            USES[where](path)
    with pytest.raises(ValueError, match=rf"^{where}: path .* null .*got 'a\\x00b'$"):
        USES[where]("a\0b")
    for path, shown in ((b"s", "b's'"), (3, "3"), (None, "None")):
        with pytest.raises(TypeError, match=f"^{where}: path .* Path, got {shown}$"):
            USES[where](path)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_not_utf_8_serves_for_relative_paths(tmp_path, monkeypatch):
    strange = tmp_path / os.fsdecode(b"\xff")
    strange.mkdir()
    monkeypatch.chdir(strange)
    save("s", STATE)
    assert same_bits(load("s"), STATE)
    for where in ("Checkpointer", "replay.load", "replay.record"):  # which make their path absolute
        with pytest.raises(ValueError, match=f"^{where}: path .* UTF-8"):
            USES[where]("run")


@pytest.mark.parametrize("name", ["x.index.json", "x.safetensors.index.json", ".index.json"])
def test_the_name_of_an_index_is_none_for_a_state(tmp_path, name):
    for limit in (None, 1):
        with pytest.raises(ValueError, match=r"^checkpoint\.save: path .*\.index\.json, .* got "):
            save(tmp_path / name, STATE, shard_bytes=limit)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "."])
def test_a_directory_is_no_path_for_a_state(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IsADirectoryError, match=r"^checkpoint\.save: path .* file, .*directory"):
        save(name, STATE)
    assert not list(tmp_path.iterdir())


STORES = {
    "checkpoint.save": lambda value, path: save(path / "s", value),
    "checkpoint.to_bytes": lambda value, path: to_bytes(value),
    "Checkpointer.save": lambda value, path: Checkpointer(path / "run").save(value, step=1),
}


@pytest.mark.parametrize("where", STORES)
def test_what_no_header_could_describe_is_refused(where, tmp_path):
    for value, message in (
        ({"a": [mx.ones([1] * 65)]}, r"state\.a\.0 .* 64 axes, got 65"),
        (
            {"a" * 6000: {"b" * 6000: mx.ones(1)}},
            "state .* paths .* 10000 characters, got 12007",
        ),
        ({"a" * 20_000: None}, "state .* paths .* 10000 characters, got 20006"),
    ):
        with pytest.raises(ValueError, match=f"^{where}: {message}"):
            STORES[where](value, tmp_path)
    with pytest.raises(ValueError, match=r"^tree: dict keys .* 2\*\*10000, got a larger integer"):
        STORES[where]({10**5000: mx.ones(1)}, tmp_path)
    for leaf, shown in (
        (True, "Python number True"),
        ("a", "got str"),
        (b"a", "got bytes"),
        ({1}, "got set"),
    ):
        with pytest.raises(TypeError, match=rf"^{where}: state\.a .*{shown}"):
            STORES[where]({"a": leaf}, tmp_path)
    with pytest.raises(TypeError, match=rf"^{where}: state\.a .* an integer of 16610 bits"):
        STORES[where]({"a": 10**5000}, tmp_path)


KEYS = [
    0,
    -3,
    10**30,
    "",
    "a.b",
    "0",
    "[0]",
    '"',
    "\\",
    "a/b",
    "\0",
    "\n",
    "\x1b[31m",
    "é",
    "\U0001f600",
    "x" * 9000,
]


def test_odd_keys_and_64_axes_come_back(tmp_path):
    value = {key: {"none": None, "w": mx.ones([1] * 64)} for key in KEYS}
    save(tmp_path / "one", value)
    save(tmp_path / "many", value, shard_bytes=4)
    with Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(value, step=1)
        restored = checkpointer.restore(like=value).state
    for found in (load(tmp_path / "one"), load(tmp_path / "many"), from_bytes(to_bytes(value)), restored):
        assert same_bits(found, value)
        assert tree.spec(found) == tree.spec(value)


@pytest.mark.parametrize("given", ["abc", [1], 3, [("a", 1)]])
def test_metadata_and_metrics_are_dicts(tmp_path, given):
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(TypeError, match=r"^Checkpointer\.save: metadata .* dict, got "):
        checkpointer.save(STATE, step=1, metadata=given)
    with pytest.raises(TypeError, match=r"^Checkpointer\.save: metrics .*names .*got "):
        checkpointer.save(STATE, step=1, metrics=given)
    assert not list(tmp_path.iterdir())


def test_metadata_that_json_could_not_read_back_is_refused(tmp_path):
    deep, cycle = [], []
    for _ in range(5000):
        deep = [deep]
    cycle.append(cycle)
    for given in (deep, cycle):
        with pytest.raises(
            ValueError, match=r"^Checkpointer\.save: metadata .* 100 deep, got more in metadata"
        ):
            Checkpointer(tmp_path).save(STATE, step=1, metadata={"a": given})
    with pytest.raises(ValueError, match=r"^Checkpointer\.save: step .* \d+, got an integer of 166"):
        Checkpointer(tmp_path).save(STATE, step=10**5000)
