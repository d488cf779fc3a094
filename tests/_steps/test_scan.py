"""scan: k steps in one call equal k calls, in order, with stacked metrics."""

from typing import Any

import mlx.core as mx
import pytest

import purestep as ps
from purestep import scan, tree
from purestep.metrics import Measurement
from tests.training import BATCH, DENSE, TRANSFORM, classifier, ragged, start
from tests.trees import same_bits

K = 3
ROWS = [ragged(seed) for seed in range(2 * K)]


def stack(batches):
    return tree.map(lambda *rows: mx.stack(rows), *batches)


def called(step, state, batches):
    """Return the state after one call for each batch, and all metrics stacked."""
    made = []
    for batch in batches:
        state, metrics = step(state, batch)
        made.append(metrics)
    return state, {name: mx.stack([metrics[name] for metrics in made]) for name in made[0]}


def scaled(**options):
    transform = ps.transforms.dynamic_loss_scale(ps.optimizers.adam(1e-2), init_scale=64.0)
    return ps.loss_scaled_step(classifier, transform, **options)


def stateful(**options):
    def loss_fn(params, model_state, batch, rng):
        loss, metrics = classifier(params, batch, rng)
        return loss, metrics, {"calls": model_state["calls"] + 1}

    return ps.train_step(loss_fn, TRANSFORM, stateful=True, **options)


def begin(step):
    return start(step.transform, model_state={"calls": mx.array(0)}, seed=3)


STEPS = {
    "train": lambda: ps.train_step(classifier, TRANSFORM),
    "microbatches": lambda: ps.train_step(classifier, TRANSFORM, microbatches=2),
    "sam": lambda: ps.sam_step(classifier, TRANSFORM, rho=0.1),
    "scaled": scaled,
    "stateful": stateful,
    "accumulate": lambda: ps.train_step(classifier, ps.transforms.accumulate(TRANSFORM, every=2)),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_call_equals_k_calls(name):
    step = STEPS[name]()
    many = scan(step, K)
    state = begin(step)
    for part in (ROWS[:K], ROWS[K:]):
        want, got = called(step, state, part), many(state, stack(part))
        assert same_bits(got, want)
        state = want[0]
    assert state.step.item() == 2 * K
    assert many.transform is step.transform
    assert (many.steps, scan(many, 2).steps, ps.compiled(many).steps, step.steps) == (K, 2 * K, K, 1)


@pytest.mark.parametrize("name", ["train", "stateful"])
def test_a_compiled_call_equals_k_compiled_calls(name):
    step = STEPS[name]()
    one = ps.compiled(step)
    many, looped, state = ps.compiled(scan(step, K)), scan(one, K), begin(step)
    for part in (ROWS[:K], ROWS[K:]):
        want = called(one, state, part)
        assert same_bits(many(state, stack(part)), want)
        assert same_bits(looped(state, stack(part)), want)
        state = want[0]
    assert (many.traces, one.traces) == (1, 1)


def test_scans_nest():
    step = STEPS["train"]()
    want = called(step, begin(step), ROWS)
    nested = stack([stack(ROWS[:K]), stack(ROWS[K:])])
    state, metrics = scan(scan(step, K), 2)(begin(step), nested)
    assert same_bits(state, want[0])
    assert same_bits({name: value.reshape(-1) for name, value in metrics.items()}, want[1])
    assert metrics["loss"].shape == (2, K)


def test_parts_are_stacked():
    step = STEPS["train"]()
    state, made = begin(step), []
    for batch in ROWS[:K]:
        made.append(step.parts(state, batch))
        state = made[-1].state
    parts = scan(step, K).parts(begin(step), stack(ROWS[:K]))
    assert same_bits(parts.state, state)
    assert same_bits(parts.gradients, stack([each.gradients for each in made]))
    assert same_bits(parts.updates, stack([each.updates for each in made]))
    assert same_bits(parts.metrics, stack([each.metrics for each in made]))
    with pytest.raises(TypeError, match="scan: parts needs a Step, as train_step returns, got a Compiled"):
        scan(ps.compiled(step), K).parts(begin(step), stack(ROWS[:K]))


def test_measurements_are_due_in_the_step_that_a_call_reaches():
    step = ps.train_step(
        classifier,
        TRANSFORM,
        measure=[
            Measurement("second", lambda moment: {"": moment.step}, every=2),
            Measurement("sixth", lambda moment: {"": moment.step}, every=6),
        ],
    )
    many, state, seen = scan(step, 3), begin(step), []
    for call in range(4):
        state, metrics = many.at(call)(state, stack(ROWS[:3]))
        assert metrics["loss"].shape == (3,)
        seen.append({name: metrics[name].tolist() for name in ("second", "sixth") if name in metrics})
    assert seen == [
        {"second": [1]},
        {"second": [3, 5], "sixth": [5]},
        {"second": [7]},
        {"second": [9, 11], "sixth": [11]},
    ]
    assert many.at(0) is many.at(2)
    assert many(state, stack(ROWS[:3]))[1]["sixth"].shape == (3,)
    compiled = ps.compiled(many)
    for call in range(4):
        compiled.at(call)(state, stack(ROWS[:3]))
    assert compiled.traces == 2
    assert scan(ps.compiled(step), 3).at(1)(state, stack(ROWS[:3]))[1]["sixth"].shape == (1,)


def test_metrics_that_are_not_scalars_are_stacked_and_must_be_alike():
    def step(state, batch):
        return state + 1, {"rows": batch, "nested": {"sum": batch.sum()}}

    state: Any = mx.array(0)
    state, metrics = scan(step, 2)(state, mx.array([[1, 2], [3, 4]]))
    assert (state.item(), metrics["rows"].tolist()) == (2, [[1, 2], [3, 4]])
    assert metrics["nested"]["sum"].tolist() == [3, 7]

    def growing(state, batch):
        return mx.concatenate([state, batch]), {"all": state}

    with pytest.raises(ValueError, match=r"scan: a metric must be alike in all steps: all has shape \(2,\)"):
        scan(growing, 2)(mx.zeros(1), mx.zeros((2, 1)))


def test_run_and_fit_count_calls():
    step = STEPS["train"]()
    many = scan(step, K)
    want = called(step, begin(step), ROWS)
    batches = [stack(ROWS[:K]), stack(ROWS[K:])]
    made = list(ps.run(many, begin(step), batches, steps=2))
    assert same_bits(made[-1][0], want[0])
    later = list(ps.run(ps.compiled(many), made[0][0], [batches[1]], steps=2))  # one call was made before
    assert len(later) == 1
    assert later[0][0].step.item() == 2 * K

    def parts(state, batch):
        made = many.parts(state, batch)
        return made._replace(metrics={name: value.mean() for name, value in made.metrics.items()})

    result = ps.fit(ps.Step(parts), begin(step), batches, steps=2, log_every=1)
    assert same_bits(result.state, want[0])
    assert result.history.last("loss") == pytest.approx(want[1]["loss"][K:].mean().item())


def test_it_is_vmapped_and_differentiated_as_k_calls_are():
    step = STEPS["train"]()
    states = stack([start(params=DENSE), start(params=DENSE, seed=9)])
    got, metrics = mx.vmap(scan(step, 2), in_axes=(0, None))(states, stack(ROWS[:2]))
    want, _ = mx.vmap(lambda state: called(step, state, ROWS[:2]))(states)
    assert metrics["loss"].shape == (2, 2)
    for a, b in zip(*map(tree.leaves, (got, want)), strict=True):
        assert mx.allclose(a, b)

    def last_loss(rate, many):
        def loss_fn(params, batch, rng):
            return mx.square(params["w"] * batch["x"] - 1).mean()

        transform = ps.optimizers.sgd(rate)
        state = ps.TrainState.create({"w": mx.array(2.0)}, transform)
        step = ps.train_step(loss_fn, transform)
        batches = [{"x": mx.array([x])} for x in (1.0, 2.0, 0.5)]
        made = scan(step, 3)(state, stack(batches)) if many else called(step, state, batches)
        return made[1]["loss"][-1]

    rate = mx.array(0.1)
    slope = mx.grad(lambda rate: last_loss(rate, many=True))(rate).item()
    assert slope == pytest.approx(mx.grad(lambda rate: last_loss(rate, many=False))(rate).item(), rel=1e-6)
    assert slope != 0


def test_steps_are_ordered_so_that_memory_does_not_grow_with_k():
    def loss_fn(params, batch, rng):
        x = batch["x"] @ params["w"]
        for _ in range(6):
            x = mx.sin(x)
        return mx.square(x).mean(), {"last": x[-1, -1]}

    transform = ps.optimizers.adam(1e-3)
    state = ps.TrainState.create({"w": mx.zeros((8, 64))}, transform)
    step, batch = ps.train_step(loss_fn, transform), {"x": mx.zeros((1000, 8))}

    def peak(k):
        report = ps.memory.predict(scan(step, k), state, stack([batch] * k))
        return report.peak - report.batch

    # On a CPU the host prepares some kernels of the next step while those of the last one run.
    assert peak(1) < peak(12) <= 1.02 * peak(4)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ({"x": mx.zeros((2, 4))}, r"batches.x must have a first axis of length k=3, got shape \(2, 4\)"),
        ({"x": mx.zeros((3, 4)), "y": [mx.array(1)]}, r"batches.y.0 must .* k=3, got shape \(\)"),
        ({"x": mx.zeros((0, 4))}, r"batches.x must have a first axis of length k=3, got shape \(0, 4\)"),
        ({}, "batches must hold at least one array, got none"),
        ({"x": 3}, "batches.x is the Python number 3"),
        ({"x": mx.zeros((3, 0))}, r"train_step: batch.x is empty"),
    ],
)
def test_batches_that_it_refuses(batches, message):
    step = STEPS["train"]()
    with pytest.raises((ValueError, TypeError), match=message):
        scan(step, 3)(begin(step), batches)


def test_other_arguments_that_it_refuses():
    step = STEPS["train"]()
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"scan: k must be at least 1, got {k}"):
            scan(step, k)
    with pytest.raises(TypeError, match="scan: k must be an integer"):
        scan(step, 2.5)
    with pytest.raises(TypeError, match="scan: step must be callable"):
        scan(None, 2)
    with pytest.raises(TypeError, match=r"scan: step must return \(state, metrics\), got array"):
        scan(lambda state, batch: state, 1)(mx.zeros(1), mx.zeros((1, 1)))
    with pytest.raises(TypeError, match="scan: step must return a dict of metrics, got array"):
        scan(lambda state, batch: (state, state), 1)(mx.zeros(1), mx.zeros((1, 1)))
    with pytest.raises(TypeError, match="scan: metrics.n is the Python number 1"):
        scan(lambda state, batch: (state, {"n": 1}), 1)(mx.zeros(1), mx.zeros((1, 1)))


def test_a_state_of_another_transform_is_refused():
    step = STEPS["train"]()
    with pytest.raises(ValueError, match="train_step: state.opt_state"):
        scan(step, 2)(start(ps.optimizers.sgd(0.1)), stack([BATCH, BATCH]))


def test_fit_counts_the_samples_of_all_steps_of_a_call():
    seen = []

    def watch(progress):
        seen.append((progress.step, progress.samples, progress.tokens))

    def loss_fn(params, batch, rng):
        return params["w"].sum() * batch["ids"].sum()

    transform = ps.optimizers.sgd(0.1)
    many = scan(scan(ps.train_step(loss_fn, transform), 2), 3)

    def parts(state, batches):
        made = many.parts(state, batches)
        return made._replace(metrics={name: values.mean() for name, values in made.metrics.items()})

    step = ps.Step(parts, steps=many.steps)
    state = ps.TrainState.create({"w": mx.zeros(2)}, transform)
    stack = {"weights": mx.ones((3, 2)), "ids": mx.ones((3, 2, 4, 5), mx.int32)}  # 4 samples of 5 tokens
    result = ps.fit(step, state, [stack] * 2, callbacks=[watch], log_every=1)
    assert seen == [(1, 24, 120), (2, 48, 240)]
    again = ps.fit(step, result.state, [stack] * 2, steps=3)  # two calls were made before
    assert again.state.step.item() == 18
