"""`fit` with a step of `scan`: each call makes several steps, and gives the metrics of each."""

import math

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep.callbacks import Callback
from tests._loop.workload import STEP, TRANSFORM, At, assert_same, bare, batch_of, start

K = 3
MANY = ps.scan(ps.train_step(lambda p, b, rng: mx.square(p["w"] - b).mean(), ps.optimizers.sgd(0.1)), K)


class Seen(Callback):
    def __init__(self):
        self.progress = []

    def on_step_end(self, progress):
        self.progress.append(progress)


def test_rows_are_means_over_all_steps_of_all_calls():
    seen = Seen()
    result = ps.fit(
        ps.scan(STEP, K), start(), ps.data.stacked(At(300), K), steps=5, log_every=2, callbacks=[seen]
    )
    made = bare(start(), [batch_of(number) for number in range(5 * K)])
    assert_same(result.state, made[-1][0])
    losses = [metrics["loss"].item() for _, metrics in made]
    rates = [metrics["learning_rate"].item() for _, metrics in made]
    steps, rows = result.history.column("loss")
    assert steps == [2, 4, 5]
    assert rows == [math.fsum(losses[:6]) / 6, math.fsum(losses[6:12]) / 6, math.fsum(losses[12:]) / 3]
    assert result.history.column("learning_rate")[1] == [rates[5], rates[11], rates[14]]
    assert seen.progress[1].values["loss"] == losses[:6]
    assert seen.progress[1].value_steps["loss"] == [1, 1, 1, 2, 2, 2]


def test_callbacks_receive_the_mean_of_a_call_and_its_last_learning_rate():
    seen = Seen()
    ps.fit(ps.scan(STEP, K), start(), ps.data.stacked(At(300), K), steps=2, callbacks=[seen])
    made = bare(start(), [batch_of(number) for number in range(2 * K)])
    for call, progress in enumerate(seen.progress):
        own = [metrics for _, metrics in made[call * K : (call + 1) * K]]
        mean = np.mean([np.float32(metrics["loss"].item()) for metrics in own])
        assert progress.metrics["loss"].shape == ()
        assert math.isclose(progress.metrics["loss"].item(), mean, rel_tol=1e-6)
        assert progress.metrics["learning_rate"].item() == own[-1]["learning_rate"].item()


def test_a_step_within_a_call_that_is_not_finite_ends_the_run():
    class Broken:
        def at(self, step):
            return mx.array([math.nan if step == 7 else 1.0])

    state = ps.TrainState.create({"w": mx.array(0.0)}, ps.optimizers.sgd(0.1))
    result = ps.fit(MANY, state, ps.data.stacked(Broken(), K), steps=6, log_every=1)
    assert result.steps == 3
    assert "not finite at step 3" in result.reason


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    many, stacks = ps.scan(STEP, K), ps.data.stacked(At(300), K)
    whole = ps.fit(many, start(), stacks, steps=7, log_every=3)
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        stop = [lambda progress: ps.callbacks.Stop("here") if progress.step == 4 else None]
        first = ps.fit(many, start(), stacks, steps=7, log_every=3, checkpointer=checkpointer, callbacks=stop)
    assert first.steps == 4
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        rest = ps.fit(many, start(), stacks, steps=7, log_every=3, checkpointer=checkpointer)
    assert_same(rest.state, whole.state)
    assert rest.history.column("loss") == whole.history.column("loss")


def test_scans_of_scans_and_measurements_of_some_steps():
    step = ps.train_step(
        lambda p, b, rng: mx.square(p["w"] - b).mean(),
        ps.optimizers.sgd(0.1),
        measure=[ps.metrics.grad_norms(every=4)],
    )
    many = ps.scan(ps.scan(step, 2), 2)
    state = ps.TrainState.create({"w": mx.array(0.0)}, ps.optimizers.sgd(0.1))

    batches = [mx.full((2, 2, 1), 1.0 + call) for call in range(3)]
    result = ps.fit(many, state, batches, steps=3, log_every=1)
    assert len(result.history.column("loss")[1]) == 3
    assert all(math.isfinite(x) for x in result.history.column("grad_norms/w")[1])


def test_other_metrics_are_refused_by_name():
    def step(state, batch):
        return state, {"loss": mx.zeros((2,))}

    state = ps.TrainState.create({"w": mx.array(0.0)}, TRANSFORM)
    with pytest.raises(ValueError, match=r"0-d arrays, got loss of shape \(2,\)"):
        ps.fit(step, state, At(), steps=2)
    with pytest.raises(ValueError, match=r"0-d arrays, got loss of shape \(3, 2\)"):
        ps.fit(ps.scan(step, K), state, ps.data.stacked(At(300), K), steps=2)
