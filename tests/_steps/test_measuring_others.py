"""Measurements in the other training steps: SAM, loss scaling and the cached contrastive step."""

import math

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps
from purestep.metrics import Measurement, Moment
from purestep.transforms import dynamic_loss_scale
from tests._measures.measuring import numbers

m, SGD = ps.metrics, ps.optimizers.sgd(0.1)
BATCH = {"x": mx.random.normal((4, 3), key=mx.random.key(1)), "y": mx.arange(4.0)}


def spying(seen, **options):
    """Return a measurement that keeps the last moment."""

    def measure(moment):
        seen[:] = [moment]
        return {"": mx.array(1.0)}

    return Measurement("spy", measure, **options)


def network():
    with ps.rng.scope(mx.random.key(0)):
        apply, params, _ = ps.functional(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)))
        mx.eval(params)
    return apply, params


APPLY, PARAMS = network()


def loss_fn(params, batch, rng):
    return ps.Mean.of(mx.square(APPLY(params, batch["x"]).squeeze(-1) - batch["y"]))


def encode(params, batch, rng):
    return {"q": APPLY(params, batch["x"]), "k": batch["x"][:, :1]}


def contrast(params, found, batch):
    return ps.losses.info_nce(found["q"], found["k"], temperature=1.0)


def sam(measure, **options):
    return ps.sam_step(loss_fn, SGD, rho=0.5, microbatches=2, measure=measure, **options), SGD


def scaled(measure, loss=loss_fn, scale=2.0**10):
    transform = dynamic_loss_scale(SGD, init_scale=scale)
    return ps.loss_scaled_step(loss, transform, microbatches=2, measure=measure), transform


def cached(measure):
    return ps.cached_contrastive_step(encode, contrast, SGD, microbatches=2, measure=measure), SGD


ALL = {"sam": sam, "scaled": scaled, "cached": cached}
EVERYTHING = [
    m.grad_norms(), m.weight_norms(), m.drift(PARAMS), m.update_ratios(), m.nonfinite_share(),
    m.zero_share("updates"), m.activations("*"), m.curvature(every=1),
]  # fmt: skip


def started(transform, params=PARAMS):
    return ps.TrainState.create(params, transform)


def close(found, want, rel=1e-4):
    mx.eval(found, want)
    assert found.keys() == want.keys()
    for key in want:
        assert mx.allclose(found[key], want[key], rtol=rel, atol=1e-6), (key, found[key], want[key])


@pytest.mark.parametrize("name", ALL)
def test_every_measurement_leaves_the_state_alone_and_is_one_trace(name):
    plain, transform = ALL[name]([])
    measured, _ = ALL[name](EVERYTHING)
    compiled, state = ps.compiled(measured), started(transform)
    want, metrics = plain(state, BATCH)
    made, found = measured(state, BATCH)
    for a, b in zip(ps.tree.leaves(made), ps.tree.leaves(want), strict=True):
        assert mx.array_equal(a, b)
    assert found.keys() > metrics.keys()
    close({key: found[key] for key in metrics}, metrics)
    for _ in range(3):
        state, got = compiled(state, BATCH)
    assert compiled.traces == 1
    assert got.keys() == found.keys()
    close(compiled(started(transform), BATCH)[1], found)


@pytest.mark.parametrize("name", ALL)
def test_step_at_makes_those_that_are_due(name):
    step, transform = ALL[name]([m.grad_norms(every=2), m.weight_norms(every=3)])
    state = started(transform)
    due = [
        sorted({key.partition("/")[0] for key in step.at(number)(state, BATCH)[1] if "/" in key})
        for number in range(6)
    ]
    assert due == [[], ["grad_norms"], ["weight_norms"], ["grad_norms"], [], ["grad_norms", "weight_norms"]]
    assert step.at(0) is step.at(4) is step.at(0).at(1)
    assert step.at(5) is step
    assert step.at(0).transform is transform
    plain, _ = ALL[name]([])
    assert plain.at(3) is plain
    compiled = ps.compiled(step)
    for number in range(12):
        compiled.at(number)(state, BATCH)
    assert compiled.traces == 4
    result = ps.fit(step, state, [BATCH], steps=4, log_every=1)
    assert result.history.column("weight_norms/layers.0")[0] == [3]


def test_sam_measures_the_gradients_at_the_second_point_and_the_parameters_without_it():
    seen: list[Moment] = []
    step, _ = sam([spying(seen, small_squares=True), m.grad_norms(), m.curvature(every=1), *EVERYTHING[6:7]])
    parts = step.parts(started(SGD), BATCH)
    (moment,) = seen
    close(dict(ps.tree.items(moment.gradients)), dict(ps.tree.items(parts.gradients)))
    close(dict(ps.tree.items(moment.params)), dict(ps.tree.items(PARAMS)))
    close(dict(ps.tree.items(moment.new_params)), dict(ps.tree.items(parts.state.params)))
    # By hand: the second point, and the norms and curvature there and here.
    value = lambda params: loss_fn(params, BATCH, None).value  # noqa: E731
    slopes = mx.grad(value)(PARAMS)
    there = ps.tree.map(lambda p, g: p + 0.5 * g / ps.tree.norm(slopes), PARAMS, slopes)
    close(
        {k: parts.metrics[f"grad_norms/{k}"] for k in m.norms(PARAMS)}, m.norms(mx.grad(value)(there)), 1e-3
    )
    assert parts.metrics["grad_norm"].item() == pytest.approx(ps.tree.norm(slopes).item(), rel=1e-4)
    assert moment.loss(PARAMS, BATCH).value.item() == pytest.approx(value(PARAMS).item(), rel=1e-5)
    slope = lambda p: sum(  # noqa: E731
        (g * u).sum() for g, u in zip(*map(ps.tree.leaves, (mx.grad(value)(p), moment.updates)), strict=True)
    )
    bend = sum(
        (b * u).sum()
        for b, u in zip(*map(ps.tree.leaves, (mx.grad(slope)(PARAMS), moment.updates)), strict=True)
    ) / mx.square(ps.tree.norm(moment.updates))
    assert parts.metrics["curvature"].item() == pytest.approx(bend.item(), rel=1e-4)
    plain = ps.train_step(loss_fn, SGD, measure=[m.activations("*")])
    want = plain(started(SGD, there), BATCH)[1]
    found = {name: parts.metrics[name] for name in want if "activations" in name}
    close(found, {name: want[name] for name in found}, 1e-3)
    halves = [ps.tree.map(lambda x, i=i: mx.split(x, 2)[i], BATCH) for i in (0, 1)]
    squares = [
        ps.tree.norm(mx.grad(lambda p, b=b: loss_fn(p, b, None).value)(there)).item() ** 2 for b in halves
    ]
    assert moment.small_square is not None
    assert moment.small_square.item() == pytest.approx(sum(squares) / 2, rel=1e-3)
    assert moment.microbatches == 2


def test_loss_scaling_measures_as_train_step_does():
    measure = [*EVERYTHING, m.noise_scale()]
    step, transform = scaled(measure)
    want = ps.train_step(loss_fn, SGD, microbatches=2, measure=measure)(started(SGD), BATCH)[1]
    found = step(started(transform), BATCH)[1]
    assert found.pop("loss_scale").item() == 2**10
    close(found, want)


def test_a_skipped_step_names_the_layer_that_overflowed_and_moves_nothing():
    def steep(params, batch, rng):
        half = {name: p.astype(mx.float16) for name, p in params.items()}
        return ((half["b"] * batch["x"].astype(mx.float16)).sum() + half["a"].sum()).astype(mx.float32)

    measure = [
        m.grad_norms(by=str),
        m.nonfinite_share(by=str),
        m.update_ratios(by=str),
        m.weight_norms(by=str),
    ]
    step, transform = scaled([*measure, m.noise_scale(), m.curvature(every=1)], steep, 2.0**15)
    params = {"a": mx.ones(2), "b": mx.ones(3)}
    state, metrics = step(started(transform, params), {"x": mx.full((4, 3), 8.0)})
    assert state.opt_state.skipped.item() == 1
    assert not math.isfinite(numbers(metrics, "grad_norms")["b"])
    assert numbers(metrics, "grad_norms")["a"] == pytest.approx(math.sqrt(2))
    assert numbers(metrics, "nonfinite_share") == {"a": 0, "b": 1}
    assert numbers(metrics, "update_ratios") == {"a": 0, "b": 0}
    assert numbers(metrics, "curvature") == {"": 0}
    assert numbers(metrics, "weight_norms") == pytest.approx({"a": math.sqrt(2), "b": math.sqrt(3)})
    average = m.NoiseScale()
    assert average.add(metrics) == average


def test_the_contrastive_step_measures_as_a_step_on_the_whole_batch():
    whole = ps.train_step(lambda p, b, r: contrast(p, encode(p, b, r), b), SGD, measure=EVERYTHING)
    want = whole(started(SGD), BATCH)[1]
    for count in (1, 2, 4):
        step = ps.cached_contrastive_step(encode, contrast, SGD, microbatches=count, measure=EVERYTHING)
        close(step(started(SGD), BATCH)[1], want)


def test_layers_of_the_encoder_are_recorded_once_and_in_one_pass():
    calls = []
    watch = m.activations("layers.0").watch
    assert watch is not None
    rows = []

    def record(*given):
        calls.append(1)
        return watch.record(*given)

    def measure(moment):
        rows.append(moment.observed["layers.0",]["totals"][0, 0].item())
        return {}

    step = cached([Measurement("rows", measure, watch=watch._replace(record=record))])[0]
    step(started(SGD), BATCH)
    assert (len(calls), rows) == (2, [4.0])


def test_what_makes_no_sense_is_refused_when_the_step_is_built():
    with pytest.raises(
        ValueError, match="must not hold 'noise_scale', which needs the gradient of each micro"
    ):
        cached([m.noise_scale()])
    for build in (ps.sam_step, ps.loss_scaled_step):
        name = build.__name__
        with pytest.raises(ValueError, match=f"{name}: microbatches must be at least 2 for .*'noise_scale'"):
            build(loss_fn, SGD, measure=[m.noise_scale()])
        with pytest.raises(TypeError, match=f"{name}: measure must hold measurements, got str"):
            build(loss_fn, SGD, measure=["norms"])
    for build, name in ((sam, "perturbed_loss"), (scaled, "loss_scale")):
        with pytest.raises(ValueError, match=f"a measurement may not be named {name}"):
            build([Measurement(name, lambda moment: {"": mx.array(0.0)})])
    step, _ = sam([Measurement("loss", lambda moment: {"": mx.array(0.0)})])
    with pytest.raises(ValueError, match="sam_step: a measurement may not be named loss"):
        step(started(SGD), BATCH)
