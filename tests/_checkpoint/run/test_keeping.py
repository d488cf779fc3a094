"""What is kept beside the newest checkpoint, and which is the newest."""

import mlx.core as mx
import pytest

from purestep.checkpoint import (
    Checkpointer,
    CorruptWarning,
    keep_every,
    keep_last,
)
from tests._checkpoint.damage import flip
from tests._checkpoint.states import VALUE


def test_what_is_kept(tmp_path):
    with Checkpointer(tmp_path, keep=keep_last(2), metric="loss") as checkpointer:
        for step, loss in enumerate([0.5, 0.1, 0.9, 0.8, 0.7]):
            checkpointer.save(VALUE, step=step, metrics={"loss": loss})
        assert checkpointer.best().step == 1
        assert [record.step for record in checkpointer.list()] == [1, 3, 4]
        assert checkpointer.best(mode="max").step == 3
        checkpointer.delete(3)
        assert [record.step for record in checkpointer.list()] == [1, 4]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "step_00000001", "step_00000004"]


def test_keeping_every_nth_and_best_is_what_any_of_keeps(tmp_path):
    with Checkpointer(tmp_path, keep=keep_every(2), asynchronous=False) as checkpointer:
        for step in range(5):
            checkpointer.save({"w": mx.ones(1)}, step=step)
            assert (tmp_path / f"step_{step:08}").is_dir()  # there when save returns
        assert [record.step for record in checkpointer.list()] == [0, 2, 4]


def test_saving_a_step_again_replaces_it(checkpointer):
    checkpointer.save({"w": mx.ones(1)}, step=1)
    checkpointer.save({"w": mx.zeros(1)}, step=1)
    assert checkpointer.restore(like={"w": mx.ones(1)}).state["w"].item() == 0.0
    assert sorted(entry.name for entry in checkpointer.path.iterdir()) == [".lock", "step_00000001.2"]
    assert checkpointer.restore(1, like={"w": mx.ones(1)}).state["w"].item() == 0.0
    assert (checkpointer.verify(), [record.step for record in checkpointer.list()]) == ({1: []}, [1])
    checkpointer.save({"w": mx.ones(1)}, step=1)
    checkpointer.delete(1)
    assert sorted(entry.name for entry in checkpointer.path.iterdir()) == [".lock"]


def test_after_going_back_the_newest_is_the_one_saved_last(tmp_path):
    with Checkpointer(tmp_path, keep=keep_last(2)) as checkpointer:
        for step in (400, 500, 410):
            checkpointer.save({"w": mx.array(float(step))}, step=step)
        assert [record.step for record in checkpointer.list()] == [500, 410]
        assert checkpointer.latest().step == 410
    with Checkpointer(tmp_path, keep=keep_last(2)) as checkpointer:  # the order outlives the process
        checkpointer.save({"w": mx.array(420.0)}, step=420)
        assert checkpointer.restore(like={"w": mx.array(0.0)}).record.step == 420
        assert [record.step for record in checkpointer.list()] == [410, 420]


def test_what_was_just_saved_is_kept_beside_a_damaged_newer_step(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        for step in (100, 200):
            checkpointer.save({"w": mx.array(float(step))}, step=step)
    flip(tmp_path / "step_00000200" / "state.safetensors", -1)
    with Checkpointer(tmp_path, keep=keep_last(1)) as checkpointer:
        with pytest.warns(CorruptWarning, match="used step 100"):
            state, _ = checkpointer.restore(like={"w": mx.array(0.0)})
        checkpointer.save(state, step=150)
        assert checkpointer.restore(like=state).record.step == 150
