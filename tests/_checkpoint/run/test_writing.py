"""Checkpoints on their way to the disk: threads that sum and flush, at any time, and what fails in them."""

import gc
import subprocess
import sys

import mlx.core as mx
import pytest

from purestep._checkpoint.disk import atomic, tensors
from purestep._checkpoint.format import checksum
from purestep.checkpoint import Checkpointer, CorruptError
from tests._checkpoint.damage import flip, raising

STATE = {"params": {"w": mx.ones(1000)}, "mu": mx.zeros(1000), "step": mx.array(1)}


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise RuntimeError"])
def test_saves_under_way_when_the_script_ends_are_finished(tmp_path, end):
    code = (
        "import mlx.core as mx, sys; from purestep.checkpoint import Checkpointer\n"
        "c = Checkpointer(sys.argv[1], max_pending=2, shard_bytes=4_000_000)\n"
        "state = {f'w{i}': mx.ones(1_000_000) for i in range(8)}\n"
        f"for step in (1, 2, 3): c.save(state, step=step)\n{end}"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert "purestep" not in done.stderr
    assert [record.step for record in Checkpointer(tmp_path).list()] == [1, 2, 3]
    assert Checkpointer(tmp_path).verify() == {1: [], 2: [], 3: []}


def test_every_file_is_on_the_disk_before_the_checkpoint_is_there(tmp_path, monkeypatch):
    flushed, flush = [], atomic.flush

    def spy(path):
        assert not (tmp_path / "step_00000001").exists() or path == tmp_path
        flushed.append(path.name)
        flush(path)

    monkeypatch.setattr(atomic, "flush", spy)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(STATE, step=1)
        checkpointer.wait()
        files = {entry.name for entry in (tmp_path / "step_00000001").iterdir()}
    assert files == {"manifest.json", "model.safetensors", "state.safetensors"}
    assert files <= set(flushed)


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("where", ["flush", "of"])
def test_what_fails_beside_the_writing_fails_the_save(tmp_path, monkeypatch, where, cuda):
    monkeypatch.setattr(mx.cuda, "is_available", lambda: cuda)
    module = atomic if where == "flush" else checksum
    real = getattr(module, where)

    def fail(what):
        if where == "of" or what.suffix == tensors.SUFFIX:
            raise OSError("the disk is gone")
        return real(what)

    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(STATE, step=1)
        checkpointer.wait()
        monkeypatch.setattr(module, where, fail)
        checkpointer.save(STATE, step=2)
        with pytest.raises(
            OSError, match="Checkpointer: step 2 was not saved: the disk is gone; earlier .*intact"
        ):
            checkpointer.wait()
        monkeypatch.setattr(module, where, real)
        assert [record.step for record in checkpointer.list()] == [1]
        checkpointer.save(STATE, step=3)
    assert Checkpointer(tmp_path).verify() == {1: [], 3: []}


def test_no_room_in_memory_is_not_damage(tmp_path, monkeypatch):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(STATE, step=1)
        checkpointer.save(STATE, step=2)
    monkeypatch.setattr(mx, "async_eval", raising(RuntimeError("[malloc] Unable to allocate 400000 bytes.")))
    with pytest.raises(MemoryError, match="^Checkpointer.restore: .*no room .*step_00000002"):
        Checkpointer(tmp_path).restore(like=STATE)


def test_a_damaged_checkpoint_that_was_passed_over_leaves_nothing_in_memory(tmp_path):
    state = {"w": mx.ones(1_000_000), "v": mx.zeros(1_000_000)}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(state, step=1)
        checkpointer.save(state, step=2)
    flip(tmp_path / "step_00000002" / "state.safetensors")
    gc.collect()
    before = mx.get_active_memory()
    gc.disable()
    try:
        with pytest.warns(match="passed over"):
            restored = Checkpointer(tmp_path).restore(like=state).state
        del restored
        with pytest.raises(CorruptError):
            Checkpointer(tmp_path).restore(2, like=state)
        assert mx.get_active_memory() < before + 2_000_000
    finally:
        gc.enable()
