"""The recorder: which step it keeps, when it looks, and what it refuses."""

from typing import NamedTuple

import mlx.core as mx
import pytest

import purestep as ps
from purestep import replay
from tests.refusals import parts
from tests.trees import same_bits

TRANSFORM = ps.optimizers.adam(0.1)


def loss_fn(params, batch, rng):
    # Where w * x is 0 the loss is finite and its gradient is not.
    return mx.sqrt(params["w"] * batch["x"]).sum(), {"biggest": batch["x"].max(), "perplexity": batch["p"]}


def batch(x=1.0, p=1.0):
    return {"x": mx.array([1.0, x]), "p": mx.array(p)}


def start():
    return ps.TrainState.create({"w": mx.ones(2)}, TRANSFORM)


STEP = ps.train_step(loss_fn, TRANSFORM)
NAN, INF = float("nan"), float("inf")


def states_of(step, batches, state=None):
    """Make the steps; return every state on the way."""
    states = [start() if state is None else state]
    for given in batches:
        states.append(step(states[-1], given)[0])
    return states


def test_a_recorder_changes_nothing_and_writes_nothing_while_all_is_well(tmp_path, recwarn):
    batches = [batch(x) for x in (1.0, 2.0, 3.0)]
    with replay.record(STEP, tmp_path / "bundles") as step:
        assert same_bits(states_of(step, batches), states_of(STEP, batches))
    assert step.bundles == []
    assert [entry.name for entry in (tmp_path / "bundles").iterdir()] == [".lock"]
    assert not recwarn.list


@pytest.mark.parametrize("every", [1, 2, 3, 5])
@pytest.mark.parametrize("bad", [0, 2, 4])
def test_the_state_and_batch_before_the_first_bad_step_are_kept_to_the_bit(tmp_path, every, bad):
    batches = [batch(2.0 + number) for number in range(5)]
    batches[bad] = batch(NAN)
    want = states_of(STEP, batches)
    with (
        pytest.warns(
            replay.ReplayWarning, match=rf"not finite after {bad} steps: metrics\.loss, .*python -m"
        ),
        replay.record(STEP, tmp_path, every=every) as step,
    ):
        states_of(step, batches)
    [path] = step.bundles
    assert path == tmp_path / f"step_{bad:08}"
    bundle = replay.load(path)
    assert same_bits(bundle.state, want[bad])
    assert type(bundle.state) is ps.TrainState
    assert same_bits(bundle.batch, batches[bad])
    assert same_bits(bundle.metrics, STEP(want[bad], batches[bad])[1])
    assert (bundle.step, bundle.compiled) == (bad, False)
    assert bundle.reason == ("metrics.loss", "metrics.grad_norm", "metrics.biggest", "params.w")


def test_the_step_before_is_looked_at_when_the_next_begins(tmp_path):
    step = replay.record(STEP, tmp_path)
    state, _ = step(start(), batch(0.0))
    assert not step.bundles
    with pytest.warns(replay.ReplayWarning):
        step(state, batch())
    assert len(step.bundles) == 1
    step.close()


def test_a_loop_that_raises_leaves_its_bundle_behind(tmp_path):
    step = replay.record(STEP, tmp_path)

    def loop():
        with step:
            step(start(), batch(NAN))
            raise FloatingPointError

    with pytest.warns(replay.ReplayWarning), pytest.raises(FloatingPointError):
        loop()
    assert len(step.bundles) == 1


def test_a_state_from_elsewhere_begins_anew(tmp_path):
    with replay.record(STEP, tmp_path, every=10) as step:
        state = step(start(), batch(2.0))[0]
        changed = state.replace(params={"w": mx.array([5.0, 6.0])})
        step(changed, batch(NAN))
        with pytest.warns(replay.ReplayWarning):
            step.check()
    assert same_bits(replay.load(step.bundles[0]).state, changed)


def test_no_more_bundles_than_asked_for(tmp_path):
    with pytest.warns(replay.ReplayWarning), replay.record(STEP, tmp_path, max_bundles=2) as step:
        states_of(step, [batch(NAN)] * 4)
    assert [path.name for path in step.bundles] == ["step_00000000", "step_00000001"]


def test_metrics_that_may_be_infinite_are_ignored_by_name(tmp_path):
    batches = [batch(p=INF), batch(0.0)]
    with pytest.warns(replay.ReplayWarning), replay.record(STEP, tmp_path, ignore=["perplexity"]) as step:
        states_of(step, batches)
    bundle = replay.load(step.bundles[0])
    assert bundle.step == 1
    assert bundle.reason == ("metrics.grad_norm", "params.w")


def test_new_parameters_are_looked_at_unless_told_otherwise(tmp_path):
    burst = ps.GradientTransform(
        lambda params: (), lambda u, s, params=None: (ps.tree.map(lambda x: x * INF, u), s)
    )
    step, state = ps.train_step(loss_fn, burst), ps.TrainState.create({"w": mx.ones(2)}, burst)
    watched = replay.record(step, tmp_path / "a")
    watched(state, batch())
    with pytest.warns(replay.ReplayWarning):
        watched.close()
    assert replay.load(watched.bundles[0]).reason == ("params.w",)
    with replay.record(step, tmp_path / "b", params=False) as unwatched:
        unwatched(state, batch())
    assert not unwatched.bundles


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
@pytest.mark.parametrize("size", [10, 10_000])
def test_numbers_that_are_large_but_finite_are_no_reason(tmp_path, recwarn, dtype, size):
    large = {"w": mx.full((size,), mx.finfo(dtype).max, dtype)}
    with replay.record(lambda state, batch: (large, {"loss": mx.array(1.0)}), tmp_path) as step:
        step(large, batch())
    assert not step.bundles
    assert not recwarn.list


def test_a_step_that_is_no_function_is_noticed(tmp_path):
    calls = []

    def impure(state, batch):
        calls.append(1)
        return {"n": state["n"] + 1}, {"loss": mx.log(batch["x"]), "calls": mx.array(len(calls))}

    with replay.record(impure, tmp_path, every=2) as step:
        state, _ = step({"n": mx.array(0.0)}, {"x": mx.array(1.0)})
        step(state, {"x": mx.array(0.0)})
        with pytest.warns(replay.ReplayWarning) as warned:
            step.check()
    assert "gave other bits the second time" in str(warned[0].message)
    assert replay.load(step.bundles[0]).step == 1  # its own count, for a state without one


def test_directories_that_are_taken_are_refused(tmp_path):
    with ps.checkpoint.Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(start())
    with pytest.raises(ValueError, match=r"^replay\.record: .*run .*checkpoints"):
        replay.record(STEP, tmp_path / "run")
    busy = pytest.raises(ps.checkpoint.LockedError, match=r"replay\.record: .* written by pid")
    with replay.record(STEP, tmp_path / "bundles"), busy:
        replay.record(STEP, tmp_path / "bundles")
    replay.record(STEP, tmp_path / "bundles").close()


@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        (3, {}, "step ... callable, got 3"),
        (STEP, {"every": 0}, "every ... 1, got 0"),
        (STEP, {"max_bundles": 0}, "max_bundles ... 1, got 0"),
        (STEP, {"ignore": "loss"}, "ignore ... list of names, got the string 'loss'"),
    ],
)
def test_arguments_are_refused(tmp_path, step, options, message):
    with pytest.raises((TypeError, ValueError), match=parts(f"replay.record: {message}")):
        replay.record(step, tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


def test_a_step_without_metrics_is_refused(tmp_path):
    with (
        replay.record(lambda state, batch: (state, 3.0), tmp_path) as step,
        pytest.raises(TypeError, match="^replay.record: step .*metrics"),
    ):
        step(start(), batch())


@pytest.mark.parametrize(
    "leaf", [True, 3, 1.5, "a", b"a", {1}, 10**5000, len], ids=lambda leaf: type(leaf).__name__
)
def test_what_no_bundle_could_hold_is_refused_at_the_first_step(leaf, tmp_path):
    made = []

    def step(state, batch):
        made.append(batch)
        return {"w": leaf}, {"loss": mx.array(mx.nan)}

    whole = {"w": mx.ones(1)}
    with replay.record(step, tmp_path) as recorder:
        for state, batch, name in (({"w": leaf}, whole, "state"), (whole, {"w": leaf}, "batch")):
            with pytest.raises(TypeError, match=rf"^replay\.record: {name}\.w "):
                recorder(state, batch)
        with pytest.raises(ValueError, match=r"^replay\.record: state .* 100 containers"):
            recorder(nested(200), whole)
        assert not made  # refused before anything was computed
        with pytest.raises(TypeError, match=r"^replay\.record: the new state\.w "):
            recorder(whole, whole)


def nested(depth):
    value = mx.ones(1)
    for _ in range(depth):
        value = [value]
    return value


class Counting(NamedTuple):
    step: mx.array


@pytest.mark.parametrize("step", [2.5, float("nan"), -3, [1], True, 4])
def test_a_step_that_is_no_count_does_not_name_the_bundle(step, tmp_path):
    with (
        pytest.warns(replay.ReplayWarning),
        replay.record(lambda state, batch: (state, {"loss": mx.array(mx.nan)}), tmp_path) as recorder,
    ):
        recorder(Counting(mx.array(step)), {})
    found = replay.load(recorder.bundles[0], types=[Counting])
    assert found.step == (4 if step == 4 else 0)
