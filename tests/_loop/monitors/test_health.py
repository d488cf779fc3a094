"""`gradient_health`: leaves by path, at one evaluation for each row, without a backward pass."""

import warnings

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import purestep as ps
from purestep._loop.monitors.leaves import examined
from tests._loop.workload import STEP, At, assert_same, start
from tests.refusals import parts

GradientWarning = ps.callbacks.GradientWarning


def params(*names):
    return {name: {"weight": mx.array([1.0, 2.0, 3.0])} for name in names}


def norms_of(gradients):
    return {f"grad_norms/{path}": mx.linalg.norm(leaf) for path, leaf in ps.tree.items(gradients)}


def stepping(change, *, measured):
    """Return a step that adds `change(step, path)` to each leaf, and measures its norm if asked."""

    def step(state, batch):
        updates = {
            name: {"weight": mx.full((3,), change(int(state["step"].item()) + 1, name))}
            for name in state["params"]
        }
        new = {
            name: {"weight": leaf["weight"] + updates[name]["weight"]}
            for name, leaf in state["params"].items()
        }
        metrics = {"loss": mx.array(0.0), **(norms_of(updates) if measured else {})}
        return {"params": new, "step": state["step"] + 1}, metrics

    return step


def watched(change, *, measured, steps=20, names=("sound", "odd"), **options):
    monitor, rows = ps.callbacks.gradient_health(**options), []
    state = {"params": params(*names), "step": mx.array(0)}
    result = ps.fit(
        stepping(change, measured=measured), state, At(), steps=steps, log_every=2, stop_on_nonfinite=False,
        callbacks=[monitor, lambda progress: rows.append(progress.row) if progress.row else None],
    )  # fmt: skip
    return monitor.health, rows, result


@pytest.mark.parametrize("measured", [True, False])
def test_a_leaf_without_gradient_is_named(measured):
    what = "gradient of odd.weight has a gradient of zero" if measured else "odd.weight has not changed"
    with pytest.warns(GradientWarning, match=what) as found:
        health, rows, _ = watched(lambda step, name: 0.1 * (name == "sound"), measured=measured)
    assert len(found) == 1
    assert list(health.zero) == ["odd.weight"]
    assert [row["gradients_zero"] for row in rows] == [int(measured), *[1] * 9]
    assert not rows[-1]["gradients_nonfinite"] + rows[-1]["gradients_exploding"]


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("bad", [mx.nan, mx.inf])
def test_a_leaf_that_is_not_finite_is_named(measured, bad):
    with pytest.warns(GradientWarning, match="at step 6 .* of odd.weight has a NaN or an infinity") as found:
        health, _, result = watched(
            lambda step, name: bad if (step, name) == (5, "odd") else 0.1, measured=measured, stop=True
        )
    assert len(found) == 1
    assert list(health.nonfinite) == ["odd.weight"]
    assert (result.steps, result.reason) == (
        6,
        "the gradient of odd.weight has a NaN or an infinity at step 6",
    )


@pytest.mark.parametrize("measured", [True, False])
def test_a_leaf_that_explodes_is_named(measured):
    with pytest.warns(GradientWarning, match="of odd.weight explodes") as found:
        _, rows, _ = watched(
            lambda step, name: 1000.0 if (step, name) == (15, "odd") else 0.1, measured=measured
        )
    assert len(found) == 1
    assert rows[7]["gradients_exploding"] == 1
    assert [row["gradients_exploding"] for row in rows[:7]] == [0] * 7


def test_a_spike_within_the_interval_is_seen_though_its_mean_is_small():
    with pytest.warns(GradientWarning, match="explodes"):
        _, _, result = watched(
            lambda step, name: 1.5 if step == 19 else 0.1, measured=True, steps=20, stop=True
        )
    assert result.reason.startswith("the gradient of sound.weight explodes")


@pytest.mark.parametrize("measured", [True, False])
def test_a_sound_run_gives_no_warning_and_is_not_changed(measured):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        health, _, result = watched(lambda step, name: 0.1, measured=measured)
    assert all(not paths for paths in health)
    state = {"params": params("sound", "odd"), "step": mx.array(0)}
    plain = ps.fit(stepping(lambda step, name: 0.1, measured=measured), state, At(), steps=20, log_every=2)
    assert_same(plain.state, result.state)


def test_no_update_is_no_zero_gradient():
    """Within a window of `accumulate` nothing changes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watched(lambda step, name: 0.1 * (step % 10 == 0), measured=False)


@pytest.mark.parametrize("measured", [True, False])
def test_the_device_is_waited_for_at_most_once_a_row(measured, monkeypatch):
    """With metrics never: they are Python numbers. The system that this replaces reads each tensor."""
    state = {"params": params(*(f"layer{number}" for number in range(30))), "step": mx.array(0)}
    made = stepping(lambda step, name: 0.1, measured=measured)(state, None)
    row = {name: float(value) for name, value in made[1].items()}
    history = ps.callbacks.History()
    progress = ps.callbacks.Progress(
        2, None, 0, made[0], None, {}, row, {k: [v] for k, v in row.items()}, None, {}, history, 0, 0, 0.0
    )
    waits = []
    evaluate = mx.eval
    monkeypatch.setattr(mx, "eval", lambda *trees: (waits.append(1), evaluate(*trees)))
    monitor = ps.callbacks.gradient_health()
    monitor.figures(progress)
    assert len(waits) == (0 if measured else 1)


def test_examined_leaves_agree_with_numpy():
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=(5, 3)).astype(np.float32), "b": rng.normal(size=7).astype(np.float16)}
    found = examined({**{k: mx.array(v) for k, v in values.items()}, "ids": mx.arange(3)})
    assert list(found) == ["a", "b"]
    for name, value in values.items():
        assert found[name].norm == pytest.approx(np.linalg.norm(value.astype(np.float64)), rel=1e-5)
        bits = value.view(np.uint32 if name == "a" else np.uint16).astype(np.uint32)
        assert found[name].bits[0] == int(bits.sum(dtype=np.uint32))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16, mx.complex64])
def test_the_smallest_change_is_seen(dtype):
    values = mx.ones((1000,), dtype)
    changed = mx.array(values)
    changed[500] = 1 + float(mx.finfo(mx.float32 if dtype == mx.complex64 else dtype).eps)
    swapped = mx.concatenate([changed[1:], changed[:1]])
    sums = [examined({"w": each})["w"].bits for each in (values, mx.array(values), changed)]
    assert (sums[0] == sums[1], sums[0] == sums[2]) == (True, False)
    assert examined({"w": swapped})["w"].norm >= 0


def test_a_real_run_with_metrics_of_its_own_name():
    def step(state, batch):
        state, metrics = STEP(state, batch)
        return state, {**metrics, "norms/w": metrics["grad_norm"]}

    monitor = ps.callbacks.gradient_health("norms")
    ps.fit(step, start(), At(), steps=8, log_every=2, callbacks=[ps.callbacks.every(4, monitor)])
    assert all(not paths for paths in monitor.health)


class Model(nn.Module):
    """The gradient of the norm of `encoder`'s outputs is NaN for an input of zeros; that of `head` is not."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(3, 4, bias=False), nn.Linear(3, 2)]

    def __call__(self, x):
        return mx.linalg.norm(self.layers[0](x)) + mx.square(self.layers[1](x)).mean()


def real_run(measure, *, bad=12, **options):
    """Train a model with a transform that skips NaN; batch number `bad` is zero."""

    class Batches:
        def at(self, step):
            return {"x": mx.full((2, 3), 0.0 if step == bad else 1.0)}

    with ps.rng.scope(mx.random.key(0)):
        apply, begun, _ = ps.functional(Model())
    transform = ps.transforms.skip_nonfinite(ps.optimizers.sgd(1e-3))
    step = ps.train_step(lambda params, batch, rng: apply(params, batch["x"]), transform, measure=measure)
    state = ps.TrainState.create(begun, transform)
    return ps.fit(ps.compiled(step), state, Batches(), steps=20, log_every=5, **options)


def test_a_layer_of_a_real_model_that_gets_nan_is_named_by_path():
    monitor, rows = ps.callbacks.gradient_health(stop=True), []
    keep = lambda progress: rows.append(progress.row)  # noqa: E731
    with pytest.warns(GradientWarning, match="at step 15 the gradient of layers.0.weight has a NaN") as found:
        result = real_run([ps.metrics.grad_norms(by=str)], callbacks=[monitor, keep])
    assert len(found) == 1
    assert list(monitor.health.nonfinite) == ["layers.0.weight"]
    assert not [*monitor.health.zero, *monitor.health.exploding]
    assert result.reason == "the gradient of layers.0.weight has a NaN or an infinity at step 15"
    assert not ps.metrics.nonfinite_paths(result.state.params)
    assert [row["gradients_nonfinite"] for row in rows if row is not None] == [0, 0, 1]


def test_rows_between_two_measurements_are_not_judged_by_other_means():
    monitor, rows = ps.callbacks.gradient_health(stop=False), []
    measure = [ps.metrics.grad_norms(by=str, every=10)]
    real_run(measure, bad=99, callbacks=[monitor, lambda progress: rows.append(progress.row)])
    judged = ["gradients_zero" in row for row in rows if row is not None]
    assert judged == [True, True, False, True]  # before the first measurement, the parameters are read


@pytest.mark.parametrize(("measure", "most"), [([ps.metrics.grad_norms(by=str)], 0), ([], 4)])
def test_a_real_run_waits_at_most_once_a_row_more(monkeypatch, measure, most):
    waits, evaluate = [], mx.eval
    monkeypatch.setattr(mx, "eval", lambda *trees: (waits.append(1), evaluate(*trees)))
    counts = []
    for callbacks in ([], [ps.callbacks.gradient_health()]):
        waits.clear()
        real_run(measure, bad=99, callbacks=callbacks)
        counts.append(len(waits))
    assert counts[1] - counts[0] <= most


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"factor": 1}, ValueError, "factor ... greater than 1, got 1"),
        ({"window": 2}, ValueError, "window ... at least 3, got 2"),
        ({"stop": 1}, TypeError, "stop must be true or false, got 1"),
        ({"metric": ""}, ValueError, "metric must be a name, got ''"),
    ],
)
def test_mistakes_are_refused(options, error, said):
    with pytest.raises(error, match=parts(f"gradient_health: {said}")):
        ps.callbacks.gradient_health(**options)
