"""Runs of the small model with a tracker: whole, and killed and resumed from an older step."""

import pytest

import purestep as ps
from tests._loop.workload import STEP, At, batch_of, loss_fn, start

CONFIG = {"seed": 0, "model": {"width": 4, "name": "line"}, "bias": None, "decay": True}


def evaluation():
    """Return an evaluation that gives a figure, and one that gives texts."""

    def write(state):
        return f"a\nsample of step {state.step.item()}"

    losses = ps.Evaluation(ps.eval_step(loss_fn), [batch_of(99)], every=4)
    return [losses, ps.Evaluation(write, every=4, name="sample")]


def fitted(tracker, root, steps, *others, **options):
    """Train with a checkpoint at every 4th step; rows come every second step."""
    with ps.checkpoint.Checkpointer(root / "run", keep=ps.checkpoint.keep_last(9)) as checkpointer:
        return ps.fit(
            STEP, start(), At(), steps=steps, evaluate=evaluation(), checkpointer=checkpointer,
            callbacks=[*others, tracker], log_every=2, **options,
        )  # fmt: skip


def killed(tracker, root, step):
    """Train until a callback raises at a step, before the tracker sees it."""

    def fail(progress):
        if progress.step == step:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fitted(tracker, root, step + 1, fail)


def roll_back(root, step):
    """Delete the checkpoints after a step, as if the process had died before they were written."""
    with ps.checkpoint.Checkpointer(root / "run") as checkpointer:
        for record in checkpointer.list():
            if record.step > step:
                checkpointer.delete(record.step)


def rows_of(history, name):
    """Return the steps and values of a figure, as a tracker should have them."""
    steps, values = history.column(name)
    return list(zip(steps, values, strict=True))
