"""Checkpoints that were changed, swapped or made unreadable: passed over loudly, or refused."""

import json
import shutil

import mlx.core as mx
import pytest

from purestep._checkpoint.format.header import seal
from purestep.checkpoint import (
    Checkpointer,
    CorruptError,
    CorruptWarning,
)
from tests._checkpoint.damage import flip
from tests._checkpoint.states import VALUE


def test_a_manifest_that_the_disk_does_not_give_is_not_passed_over(checkpointer, monkeypatch):
    for step in (1, 2):
        checkpointer.save({"w": mx.ones(1)}, step=step)
    checkpointer.wait()
    read = type(checkpointer.path).read_bytes

    def fail(path, *arguments, **options):
        if path.parent.name == "step_00000002":
            raise OSError(5, "Input/output error")
        return read(path, *arguments, **options)

    monkeypatch.setattr(type(checkpointer.path), "read_bytes", fail)
    with pytest.raises(OSError, match=r"step_00000002/manifest.json cannot .*\(Input/output error\)"):
        checkpointer.restore(like={"w": mx.ones(1)})
    assert checkpointer.restore(1).record.step == 1  # for those who know what they ask for
    assert checkpointer.verify()[1] == []
    assert checkpointer.verify()[2][0].endswith("manifest.json cannot be read (Input/output error)")
    checkpointer.close()
    with Checkpointer(checkpointer.path) as other:
        with pytest.raises(
            OSError, match=r"Checkpointer\.save: .*step_00000002/manifest\.json cannot .*\(Input"
        ):
            other.save({"w": mx.ones(1)}, step=3)  # its serial may be taken
        other.delete(2)
        other.save({"w": mx.ones(1)}, step=3)
        assert [record.step for record in other.list()] == [1, 3]


def test_a_corrupt_latest_is_passed_over_loudly_and_left_alone(checkpointer):
    for step in (1, 2, 3):
        checkpointer.save({"w": mx.full(4, float(step))}, step=step)
    checkpointer.wait()
    flip(checkpointer.path / "step_00000003" / "state.safetensors", -1)
    flip(checkpointer.path / "step_00000002" / "manifest.json", 100)
    like = {"w": mx.zeros(4)}
    with pytest.warns(CorruptWarning, match=r"used step 1, passed over\n.*step_00000002.*\n.*step_00000003"):
        state, record = checkpointer.restore(like=like)
    assert (record.step, state["w"].tolist()) == (1, [1.0] * 4)
    assert len(list(checkpointer.path.glob("step_*/state.safetensors"))) == 3
    with pytest.raises(CorruptError, match="step_00000003.* checksum .*"):
        checkpointer.restore(3, like=like)
    problems = checkpointer.verify()
    assert [bool(problems[step]) for step in (1, 2, 3)] == [False, True, True]
    with pytest.warns(CorruptWarning, match="step_00000002"):
        assert [record.step for record in checkpointer.list()] == [1, 3]
    flip(checkpointer.path / "step_00000001" / "state.safetensors", -1)
    with pytest.raises(
        CorruptError, match=r"Checkpointer\.restore: no checkpoint .*:\n.*00002.*\n.*00003.*\n.*00001"
    ):
        checkpointer.restore(like=like)
    checkpointer.save({"w": mx.zeros(4)}, step=3)  # a damaged one is replaced
    with pytest.warns(CorruptWarning, match="used step 3, passed over\n.*step_00000002"):
        assert checkpointer.restore(like=like).record.step == 3


def test_links_and_paths_that_lead_elsewhere_are_refused(tmp_path):
    outside, run = tmp_path / "outside", tmp_path / "run"
    with Checkpointer(outside) as other, Checkpointer(run) as checkpointer:
        other.save(VALUE, step=7)
        checkpointer.save(VALUE, step=1)
    (run / "step_00000007").symlink_to(outside / "step_00000007")
    with pytest.warns(CorruptWarning, match="step_00000007 .*symbolic link"):
        assert Checkpointer(run).restore().record.step == 1
    with Checkpointer(run) as checkpointer:
        checkpointer.delete(7)
    assert (outside / "step_00000007").is_dir()
    file = run / "step_00000001" / "state.safetensors"
    file.rename(tmp_path / "state.safetensors")
    file.symlink_to(tmp_path / "state.safetensors")
    with pytest.raises(CorruptError, match="Checkpointer.restore: .*state.safetensors .*symbolic link"):
        Checkpointer(run).restore(1)
    manifest = run / "step_00000001" / "manifest.json"
    content = json.loads(manifest.read_text())["content"]
    content["files"]["../step_00000001/state.safetensors"] = content["files"].pop("state.safetensors")
    content["leaves"]["step"][0] = "../step_00000001/state.safetensors"
    manifest.write_text(seal(content))
    with pytest.raises(
        ValueError, match="Checkpointer.restore: .*manifest.json names .*not in its directory"
    ):
        Checkpointer(run).restore(1)


def test_a_renamed_or_swapped_checkpoint_is_noticed(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save({"w": mx.ones(4)}, step=1)
        checkpointer.save({"w": mx.zeros(4)}, step=2)
    one, two = tmp_path / "step_00000001", tmp_path / "step_00000002"
    (one / "state.safetensors").rename(tmp_path / "kept")
    (two / "state.safetensors").rename(one / "state.safetensors")
    (tmp_path / "kept").rename(two / "state.safetensors")
    assert all(Checkpointer(tmp_path).verify().values())
    two.rename(tmp_path / "step_00000003")
    with pytest.raises(CorruptError, match="Checkpointer.restore: .*step_00000003 .*step 2: .*renamed"):
        Checkpointer(tmp_path).restore(3)


def test_swapped_files_are_detected(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2):
            checkpointer.save({"params": {"w": mx.full(50, float(step))}, "s": mx.array(step)}, step=step)
    one, two = tmp_path / "step_00000001", tmp_path / "step_00000002"
    for name in ("model.safetensors", "state.safetensors", "manifest.json"):
        intact = (two / name).read_bytes()
        shutil.copy(one / name, two / name)
        with pytest.raises(CorruptError):
            checkpointer.restore(2)
        with pytest.warns(CorruptWarning, match="used step 1"):
            assert checkpointer.restore().record.step == 1
        (two / name).write_bytes(intact)
    checkpointer.restore(2)
