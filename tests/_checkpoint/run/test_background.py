"""Saves in the background: what they hold, and how the errors of one are told."""

import subprocess
import sys
import threading

import mlx.core as mx
import pytest

from purestep._checkpoint.disk import tensors
from purestep.checkpoint import (
    Checkpointer,
    save_on_best,
)
from tests._checkpoint.states import VALUE


def test_a_save_holds_what_the_state_was(checkpointer, monkeypatch):
    go = threading.Event()
    write = tensors.write_summed
    monkeypatch.setattr(tensors, "write_summed", lambda *arguments: go.wait(30) and write(*arguments))
    value = {"w": mx.ones(3)}
    checkpointer.save(value, step=1)  # returns, though nothing is written yet
    assert not (checkpointer.path / "step_00000001").exists()
    value["w"][0] = 7.0
    go.set()
    assert checkpointer.restore(like=value).state["w"].tolist() == [1.0, 1.0, 1.0]


def test_a_save_waits_for_room(checkpointer, monkeypatch):
    go, order = threading.Event(), []
    write = tensors.write_summed
    monkeypatch.setattr(tensors, "write_summed", lambda *arguments: go.wait(30) and write(*arguments))
    checkpointer.save({"w": mx.ones(1)}, step=1)
    second = threading.Thread(
        target=lambda: checkpointer.save({"w": mx.ones(1)}, step=2) or order.append("saved")
    )
    second.start()
    second.join(0.2)
    assert second.is_alive()
    order.append("gone")
    go.set()
    second.join(30)
    assert order == ["gone", "saved"]


def failing(monkeypatch, error):
    """Let every write fail; return an event that says that one has."""
    failed = threading.Event()

    def fail(*arguments):
        failed.set()
        raise error

    monkeypatch.setattr(tensors, "write_summed", fail)
    return failed


def test_a_failure_in_the_background_is_raised_by_the_next_call(checkpointer, monkeypatch):
    checkpointer.save(VALUE, step=1)
    checkpointer.wait()
    failing(monkeypatch, OSError(28, "No space left on device"))
    checkpointer.save(VALUE, step=2)
    with pytest.raises(OSError, match=r"step 2 was not saved: .*No space left.*; earlier .*intact"):
        checkpointer.latest()
    monkeypatch.undo()
    checkpointer.save(VALUE, step=3)  # raised once, then the way is free
    assert [record.step for record in checkpointer.list()] == [1, 3]
    assert [entry.name for entry in checkpointer.path.iterdir() if entry.name.endswith("tmp")] == []


def test_a_failure_in_the_background_is_raised_by_close(tmp_path, monkeypatch):
    failing(monkeypatch, OSError("gone"))
    with pytest.raises(OSError, match="step 2 was not saved: gone"), Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(VALUE, step=2)


def test_the_error_of_the_body_is_not_hidden_by_that_of_a_save(tmp_path, monkeypatch):
    failing(monkeypatch, OSError("gone"))

    def body():
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(VALUE, step=2)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        body()
    assert caught.value.__notes__ == [
        "and a checkpoint failed: Checkpointer: step 2 was not saved: gone; earlier checkpoints are intact"
    ]


def test_a_writer_that_nobody_closes_finishes_and_says_what_failed(tmp_path):
    code = (
        "import mlx.core as mx, sys; from purestep.checkpoint import Checkpointer\n"
        "from purestep._checkpoint.disk import tensors\n"
        "c = Checkpointer(sys.argv[1]); c.save({'w': mx.ones(1000)}, step=1); c.wait()\n"
        "c.save({'w': mx.ones(1000)}, step=2); c.wait()\n"
        "def fail(*a): raise OSError('gone')\n"
        "tensors.write_summed = fail; c.save({'w': mx.ones(1000)}, step=3)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert (
        done.stderr == "purestep: Checkpointer: step 3 was not saved: gone; earlier checkpoints are intact\n"
    )
    assert [record.step for record in Checkpointer(tmp_path).list()] == [1, 2]


def test_saving_a_step_again_and_failing_leaves_the_first(checkpointer, monkeypatch):
    checkpointer.save({"w": mx.ones(1)}, step=1)
    checkpointer.wait()
    failing(monkeypatch, OSError("gone"))
    checkpointer.save({"w": mx.zeros(1)}, step=1)
    with pytest.raises(OSError, match="Checkpointer: step 1 was not saved: gone"):
        checkpointer.wait()
    assert checkpointer.restore(like={"w": mx.ones(1)}).state["w"].item() == 1.0


def test_a_failed_save_does_not_count_for_the_policy(tmp_path, monkeypatch):
    with Checkpointer(tmp_path, save_when=save_on_best("loss")) as checkpointer:
        assert checkpointer.save_if_due(VALUE, step=1, metrics={"loss": 1.0})
        checkpointer.wait()
        failing(monkeypatch, OSError("gone"))
        assert checkpointer.save_if_due(VALUE, step=2, metrics={"loss": 0.1})
        with pytest.raises(OSError, match="Checkpointer: step 2 was not saved: gone"):
            checkpointer.wait()
        monkeypatch.undo()
        assert checkpointer.save_if_due(VALUE, step=3, metrics={"loss": 0.2})
        assert [record.step for record in checkpointer.list()] == [1, 3]


def test_a_failure_does_not_cost_the_next_save_too(checkpointer, monkeypatch):
    failed = failing(monkeypatch, OSError("gone"))
    checkpointer.save(VALUE, step=1)
    assert failed.wait(30)
    monkeypatch.undo()
    with pytest.raises(OSError, match="Checkpointer: step 1 was not saved: gone"):
        checkpointer.save(VALUE, step=2)
    assert [record.step for record in checkpointer.list()] == [2]


def test_several_failures_are_all_told(tmp_path, monkeypatch):
    go = threading.Event()

    def fail(*arguments):
        go.wait(30)
        raise OSError("gone")

    monkeypatch.setattr(tensors, "write_summed", fail)
    checkpointer = Checkpointer(tmp_path, max_pending=3)
    for step in (1, 2, 3):
        checkpointer.save(VALUE, step=step)
    go.set()
    with pytest.raises(OSError, match="Checkpointer: step 1 was not saved: gone") as caught:
        checkpointer.close()
    assert [note[:18] for note in caught.value.__notes__] == ["and then: Checkpoi"] * 2
    checkpointer.close()


def test_a_policy_that_raises_loses_nothing(tmp_path):
    def keep(records):
        raise KeyError("accuracy")

    checkpointer = Checkpointer(tmp_path, keep=keep)
    checkpointer.save(VALUE, step=1)
    with pytest.raises(RuntimeError, match="Checkpointer: step 1 is saved, .*clean.*KeyError"):
        checkpointer.save(VALUE, step=2)
    with pytest.raises(RuntimeError, match="Checkpointer: step 2 is saved, .*clean.*KeyError"):
        checkpointer.close()
    assert [record.step for record in Checkpointer(tmp_path).list()] == [1, 2]
