"""One checkpoint on disk: its name, its manifest, and how its files are checked."""

import json
import pathlib
import time
from pathlib import Path

import mlx.core as mx
import pytest

from purestep import tree
from purestep._checkpoint.disk import reader, tensors
from purestep._checkpoint.format.header import seal
from purestep._checkpoint.restoring.restore import restore
from purestep._checkpoint.run import directory
from purestep.checkpoint import CorruptError
from tests._checkpoint.damage import flip
from tests.trees import same_bits

FACTS = {"time": 0.0, "metrics": {"loss": 1.0}, "metadata": {}}
STATE = {"params": {"w": mx.ones(3), "b": mx.zeros(2)}, "step": mx.array(1)}


def written(root, state=STATE, step=1, shard_bytes=None):
    path = directory.path_of(root, step)
    path.mkdir()
    directory.write(
        path, tensors.snapshot(state), tree.to_plain(tree.spec(state)), {"step": step, **FACTS}, shard_bytes
    )
    return path


def read_back(path):
    manifest = directory.read("read", path)
    return restore("read", manifest.stored_tree("read"), None)


def rewrite(path, **changes):
    manifest = path / directory.MANIFEST
    content = json.loads(manifest.read_text())["content"]
    manifest.write_text(seal({**content, **changes}))


@pytest.mark.parametrize("step", [0, 1, 99_999_999, 100_000_000, 10**18 - 1])
def test_every_step_that_is_saved_is_found(tmp_path, step):
    path = written(tmp_path, step=step)
    assert directory.step_and_attempt(path) == directory.step_and_attempt(directory.path_of(tmp_path, step))
    assert directory.read("read", path).record.step == step
    assert same_bits(read_back(path), STATE)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 1e999},
        {"step": None},
        {"time": "now"},
        {"files": {"state.safetensors": [1e999, "x"]}},
        {"files": 3},
        {"metrics": {"loss": "abc"}},
        {"metadata": 5},
        {"versions": 3},
        {"leaves": {"w": ["state.safetensors", "w"]}},
        {"leaves": {}},
        {"tree": ["array", "float32", [3]]},
        {"tree": ["weird"]},
        {"tree": ["dict", [["step", ["array", "int32", [0, 2**40]]]]]},
    ],
)
def test_hostile_manifests_are_damage(tmp_path, changes):
    path = written(tmp_path)
    rewrite(path, **changes)
    with pytest.raises(CorruptError, match=r"^read: .*manifest\.json is damaged"):
        read_back(path)


@pytest.mark.parametrize("name", ["..", "", ".", "../x", "/etc/passwd", "a\0b"])
def test_files_outside_the_directory_are_refused(tmp_path, name):
    path = written(tmp_path)
    rewrite(path, files={name: [1, "crc32:0"]})
    with pytest.raises(ValueError, match="^read: .*manifest.json names .*not in its directory"):
        read_back(path)


def test_what_has_the_name_but_not_the_kind_is_told(tmp_path):
    directory.path_of(tmp_path, 1).touch()
    with pytest.raises(CorruptError, match="^read: .*step_00000001 is missing: .*a file, not a directory"):
        read_back(directory.path_of(tmp_path, 1))
    path = written(tmp_path, step=2)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").mkdir()
    with pytest.raises(CorruptError, match=r"^read: .*model\.safetensors is missing: .*not a file"):
        read_back(path)


def test_a_manifest_that_the_disk_does_not_give_is_no_damage(tmp_path, monkeypatch):
    path = written(tmp_path)

    def broken(self, *arguments, **options):
        raise OSError(5, "Input/output error", str(self))

    monkeypatch.setattr(pathlib.Path, "open", broken)
    with pytest.raises(OSError, match=r" read: .*manifest\.json cannot .*\(Input/output error\)$"):
        directory.read("read", path)


def test_a_file_that_the_disk_does_not_give_is_listed_with_the_reason(tmp_path, monkeypatch):
    path = written(tmp_path)
    manifest = directory.read("read", path)

    def broken(self, *arguments, **options):
        raise OSError(5, "Input/output error", str(self))

    monkeypatch.setattr(Path, "open", broken)
    problems = manifest.verify("read")
    assert len(problems) == 2
    assert all(problem.endswith("cannot be read (Input/output error)") for problem in problems)


def test_verify_names_every_damaged_array(tmp_path):
    path = written(tmp_path)
    file = path / "model.safetensors"
    for position in (-1, -20):  # one bit of each array
        flip(file, position)
    problems = directory.read("read", path).verify("read")
    assert sorted(problem.partition(" in ")[0] for problem in problems) == ["params.b", "params.w"]
    assert all("is damaged: its bytes do not have the checksum written" in problem for problem in problems)


def test_verify_opens_each_file_once_and_takes_linear_time(tmp_path, monkeypatch):
    state = {"p": {f"layer{number}": mx.ones(4) for number in range(3000)}}
    path = written(tmp_path, state, shard_bytes=16 * 1000)
    opened = []
    load = mx.load
    monkeypatch.setattr(mx, "load", lambda path, **options: opened.append(path) or load(path, **options))
    begun = time.perf_counter()
    assert directory.read("read", path).verify("read") == []
    assert time.perf_counter() - begun < 10  # 200 s when each array opened its file
    assert len(opened) == 3


def test_verify_holds_one_array_at_a_time(tmp_path):
    state = {str(number): mx.ones(250_000) for number in range(20)}
    path = written(tmp_path, state)
    del state
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    assert directory.read("read", path).verify("read") == []
    assert mx.get_peak_memory() - before < 3_000_000


def test_a_restore_looks_at_each_header_once(tmp_path, monkeypatch):
    path = written(tmp_path)
    checked, check = [], reader.check_array_names
    monkeypatch.setattr(
        reader,
        "check_array_names",
        lambda where, file, names: checked.append(file.name) or check(where, file, names),
    )
    assert same_bits(read_back(path), STATE)
    assert sorted(checked) == sorted(file.name for file in path.glob("*.safetensors"))
