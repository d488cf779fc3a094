"""A step made again: to the bit, and the first array on its way that is not finite."""

from typing import NamedTuple

import mlx.core as mx
import pytest

import purestep as ps
from purestep import replay
from purestep._replay import bundle as bundles

INF = float("inf")


class Burst(NamedTuple):
    """A transform's state of the user's own."""

    factor: mx.array


def burst(factor):
    """Multiply by a factor that turns what is not 0 into an infinity, and 0 into NaN."""
    return ps.GradientTransform(
        lambda params: Burst(mx.array(factor)),
        lambda updates, state, params=None: (ps.tree.map(lambda u: u * state.factor, updates), state),
    )


def loss_fn(params, batch, rng):
    hidden = mx.sqrt(mx.abs(params["w"]))  # at 0, its gradient is not finite
    noise = mx.random.uniform(shape=(2,), key=rng)
    return (hidden * batch["x"] * (1 + noise)).sum() + params["b"].sum(), {"mean": batch["x"].mean()}


def start(transform, w=(1.0, 2.0)):
    return ps.TrainState.create({"w": mx.array(w), "b": mx.zeros(2)}, transform, seed=3)


GOOD, BAD = {"x": mx.array([0.3, 0.7])}, {"x": mx.array([0.3, float("nan")])}
ADAM, BURST = ps.optimizers.adam(0.1), ps.chain(ps.optimizers.sgd(0.1), burst(INF))
CASES = {
    "batch": (ADAM, (1.0, 2.0), BAD, replay.Nonfinite("batch.x", 1, 0, 2, (1,))),
    "gradient": (ADAM, (1.0, 0.0), GOOD, replay.Nonfinite("gradients.w", 1, 0, 2, (1,))),
    "update": (BURST, (1.0, 2.0), GOOD, replay.Nonfinite("updates.w", 0, 2, 2, (0,))),
    "state": (ADAM, (INF, 2.0), GOOD, replay.Nonfinite("state.params.w", 0, 1, 2, (0,))),
}


@pytest.fixture(scope="module")
def steps():
    """Each step eager and compiled: its kernels are built once."""
    plain = {id(transform): ps.train_step(loss_fn, transform) for transform in (ADAM, BURST)}
    return {key: (step, ps.compiled(step)) for key, step in plain.items()}


def recorded(step, state, batch, root):
    recorder = replay.record(step, root)
    recorder(state, batch)
    with pytest.warns(replay.ReplayWarning):
        recorder.close()
    return replay.load(recorder.bundles[0], types=[Burst])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fast", [False, True], ids=["eager", "compiled"])
def test_the_first_nonfinite_array_is_named_and_the_step_reproduced_to_the_bit(tmp_path, steps, case, fast):
    transform, w, batch, first = CASES[case]
    step = steps[id(transform)][fast]
    loaded = recorded(step, start(transform, w), batch, tmp_path)
    assert loaded.compiled is fast
    for again in steps[id(transform)]:  # the bundle says which of the two ran
        report = replay.explain(again, loaded, eager_and_compiled=fast)
        assert report.first == first
        assert (report.reproduced, report.mismatches, report.conditions) == (True, (), ())
        assert (report.drift is not None) is fast
    assert [stage.name for stage in report.stages] == [
        "state",
        "batch",
        "loss",
        "gradients",
        "metrics",
        "updates",
        "new state",
    ]
    assert all(stage.arrays for stage in report.stages)
    assert report.stages[-1].nonfinite


def test_everything_finite_leaves_nothing_to_name(steps):
    report = replay.explain(steps[id(ADAM)][0], (start(ADAM), GOOD))
    assert report.first is None
    assert (report.reproduced, report.conditions, report.notes) == (None, (), ())
    assert all(found.ulps < 100 for path, found in report.drift.items() if "rng" not in path)


def test_another_step_is_not_reproduced(tmp_path, steps):
    loaded = recorded(steps[id(ADAM)][0], start(ADAM), BAD, tmp_path)
    slower = ps.train_step(lambda p, b, r: (loss_fn(p, b, r)[0] * 2, {}), ADAM)
    report = replay.explain(slower, loaded, eager_and_compiled=False)
    assert report.reproduced is False
    assert "metrics.mean" in report.mismatches


@pytest.mark.parametrize(
    "step",
    [
        ps.train_step(lambda p, b, r: p["other"].sum(), ADAM),
        ps.train_step(lambda p, b, r: (p["w"] @ mx.ones((7, 7))).sum(), ADAM),
        ps.train_step(loss_fn, BURST),
        lambda state, batch: state,
        lambda state, batch: (state, {"loss": 3.0}),
    ],
)
def test_the_step_of_another_model_is_refused(tmp_path, steps, step):
    loaded = recorded(steps[id(ADAM)][0], start(ADAM), BAD, tmp_path)
    with pytest.raises(ValueError, match=r"^replay\.explain: step cannot .*state and batch.*\(\w+Error: "):
        replay.explain(step, loaded, eager_and_compiled=False)


def test_another_device_or_version_is_said(tmp_path, steps):
    loaded = recorded(steps[id(ADAM)][0], start(ADAM), BAD, tmp_path)
    other = loaded._replace(device="abacus", versions={**loaded.versions, "mlx": "0.1"})
    report = replay.explain(steps[id(ADAM)][0], other, eager_and_compiled=False)
    assert report.conditions[0] == f"device: abacus when recorded, {bundles.device()} here"
    assert report.conditions[1].startswith("mlx: 0.1 when recorded, ")


def test_a_step_of_ones_own_is_seen_from_outside(tmp_path):
    def own(state, batch):
        return {"w": state["w"] / batch["x"]}, {"loss": mx.log(batch["x"]).sum()}

    report = replay.explain(own, ({"w": mx.ones(2)}, {"x": mx.array([0.0, 1.0])}), eager_and_compiled=False)
    assert report.first == replay.Nonfinite("loss", 0, 1, 1, ())
    assert [stage.name for stage in report.stages if stage.arrays is None] == ["gradients", "updates"]
    assert "gradients and updates cannot be seen" in report.notes[0]
    own.parts = lambda state, batch: (*own(state, batch), {"w": mx.array(mx.nan)}, {"w": mx.array(1.0)})
    report = replay.explain(own, ({"w": mx.ones(2)}, {"x": mx.array([1.0, 1.0])}), eager_and_compiled=False)
    assert report.first.path == "gradients.w"


@pytest.mark.parametrize("build", [ps.loss_scaled_step, ps.sam_step])
def test_the_other_steps_show_their_parts_too(build):
    transform = (
        ps.transforms.dynamic_loss_scale(ADAM, init_scale=8.0) if build is ps.loss_scaled_step else ADAM
    )
    step, state = build(loss_fn, transform), start(transform)
    made = step.parts(state, GOOD)
    assert ps.tree.paths(made.gradients) == ps.tree.paths(made.updates) == ["w", "b"]
    new, metrics = step(state, GOOD)
    assert mx.array_equal(ps.apply_updates(state.params, made.updates)["w"], new.params["w"])
    assert made.metrics.keys() == metrics.keys()


def test_steps_that_skip_what_overflows_are_recorded_by_their_loss_only(tmp_path):
    transform = ps.transforms.skip_nonfinite(ADAM)
    step = ps.train_step(loss_fn, transform)
    with replay.record(step, tmp_path, ignore=["grad_norm"]) as recorder:
        recorder(start(transform, (1.0, 0.0)), GOOD)
    assert not recorder.bundles


@pytest.mark.parametrize("given", [3, (1, 2, 3), "path"])
def test_what_was_not_recorded_is_refused(given):
    with pytest.raises(TypeError, match=r"^replay\.explain: recorded .* Bundle or \(state, batch\)"):
        replay.explain(lambda state, batch: (state, {}), given)
