"""Measurements of a step: their names, when they are due, their cost in the steps between, and refusals."""

import gc
import io
import re
import weakref
from collections import Counter

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps
from purestep._core import cuda
from purestep.metrics import Measurement
from tests._measures.measuring import plain_sums


def step_with(*measure, microbatches=1):
    """Return a step of plain gradient descent and its state."""
    transform = ps.optimizers.sgd(0.1)

    def loss_fn(params, batch, rng):
        return mx.square(params["w"] - batch["x"]).mean()

    step = ps.train_step(loss_fn, transform, measure=measure, microbatches=microbatches)
    return step, ps.TrainState.create({"w": mx.array(1.0)}, transform)


BATCH = {"x": mx.array([0.0, 4.0])}
double = Measurement("double", lambda moment: {"": 2 * moment.gradients["w"]}, every=2)
third = Measurement(
    "third", lambda moment: {"step": moment.step, "rows": mx.array(moment.batch["x"].size)}, 3
)


def test_a_measurement_sees_the_step_and_names_its_results():
    seen = []
    spy = Measurement("spy", lambda moment: seen.append(moment) or {"a": mx.array(1.0), "": mx.array(2.0)})
    step, state = step_with(spy)
    parts = step.parts(state, BATCH)
    assert (parts.metrics["spy/a"].item(), parts.metrics["spy"].item()) == (1.0, 2.0)
    (moment,) = seen
    assert moment.gradients["w"].item() == parts.gradients["w"].item() == -2.0
    assert moment.updates["w"].item() == pytest.approx(0.2)
    assert moment.params["w"].item() == 1.0
    assert moment.new_params["w"].item() == pytest.approx(1.2)
    assert moment.loss(moment.params, BATCH).value.item() == parts.metrics["loss"].item()
    assert (moment.microbatches, moment.small_square, moment.observed) == (1, None, {})


def test_a_step_makes_all_measurements_and_step_at_those_that_are_due():
    step, state = step_with(double, third)
    assert {"double", "third/step", "third/rows"} <= step(state, BATCH)[1].keys()
    due = [sorted({"double", "third/step"} & step.at(number)(state, BATCH)[1].keys()) for number in range(6)]
    assert due == [[], ["double"], ["third/step"], ["double"], [], ["double", "third/step"]]
    assert step.at(0) is step.at(4) is step.at(0).at(1)
    assert step.at(5) is step
    plain, _ = step_with()
    assert plain.at(3) is plain


@pytest.mark.parametrize("wrap", [lambda step: step, ps.compiled])
def test_run_and_fit_measure_what_is_due_and_a_resumed_run_too(wrap):
    step, state = step_with(double, third)
    step = wrap(step)
    due = ["double" in metrics for _, metrics in ps.run(step, state, [BATCH], steps=5)]
    assert due == [False, True, False, True, False]
    later = state.replace(step=mx.array(3, mx.int32))
    assert ["double" in metrics for _, metrics in ps.run(step, later, [BATCH] * 9, steps=5)] == [True, False]
    result = ps.fit(step, state, [BATCH], steps=7, log_every=3)
    assert result.history.column("third/step") == ([3, 6], [2.0, 5.0])
    assert result.history.column("double")[0] == [3, 6]


def test_each_set_of_measurements_is_one_trace():
    step, state = step_with(double, third)
    compiled = ps.compiled(step)
    for number in range(12):
        state, _ = compiled.at(number)(state, BATCH)
    assert compiled.traces == 4
    assert compiled.at(0) is compiled.at(4)
    assert compiled.at(5) is compiled
    function = ps.compiled(lambda state, batch: (state, {}))
    assert function.at(1) is function


def test_the_steps_between_compute_what_a_step_without_measurements_does():
    """The compiled graphs are the same: `every=n` costs nothing in between."""

    def primitives(step, state):
        dot = io.StringIO()
        mx.export_to_dot(dot, *ps.tree.leaves(ps.compiled(step)(state, BATCH)))
        return Counter(re.findall(r'\[label ="([^"]*)"', dot.getvalue()))

    watching = [ps.metrics.weight_norms(every=5), ps.metrics.noise_scale(every=5), double, third]
    measured, state = step_with(*watching, microbatches=2)
    plain, _ = step_with(microbatches=2)
    assert primitives(measured.at(0), state) == primitives(plain, state)
    assert primitives(measured, state) != primitives(plain, state)


def test_the_state_is_the_same_bit_for_bit_with_and_without():
    measured, state = step_with(double, ps.metrics.grad_norms(), ps.metrics.curvature(every=1))
    plain, _ = step_with()
    for a, b in zip(
        ps.tree.leaves(measured(state, BATCH)[0]), ps.tree.leaves(plain(state, BATCH)[0]), strict=True
    ):
        assert mx.array_equal(a, b)


def spoil(moment):
    """Write into everything that a measurement receives: into the arrays, then into the containers."""
    for held in (moment.gradients, moment.updates, moment.params, moment.new_params, moment.batch):
        for leaf in ps.tree.leaves(held):
            leaf[...] = mx.array(7.0)
        held.clear()
    moment.step[...] = mx.array(7)
    return {}


@pytest.mark.parametrize("wrap", [lambda step: step, ps.compiled])
def test_a_measurement_that_writes_into_what_it_receives_changes_no_step(wrap):
    spoiled, state = step_with(Measurement("spoil", spoil))
    plain, _ = step_with()
    if wrap is not ps.compiled:  # also the gradients and updates
        for a, b in zip(
            ps.tree.leaves(spoiled.parts(state, BATCH)),
            ps.tree.leaves(plain.parts(state, BATCH)),
            strict=True,
        ):
            assert mx.array_equal(a, b)
    for _ in range(2):
        made, wanted = (wrap(step)(state, BATCH) for step in (spoiled, plain))
        for a, b in zip(ps.tree.leaves(made), ps.tree.leaves(wanted), strict=True):
            assert mx.array_equal(a, b)
        state = made[0]
    assert BATCH["x"].tolist() == [0.0, 4.0]


@pytest.mark.parametrize("wrap", [lambda step: step, ps.compiled])
def test_draws_without_a_key_are_a_function_of_the_step_and_the_name(wrap):
    draw = {name: Measurement(name, lambda moment: {"": mx.random.uniform()}) for name in "ab"}
    both, state = step_with(*draw.values())
    alone, _ = step_with(draw["b"])
    before = mx.random.state[0].tolist()
    new, first = wrap(both)(state, BATCH)
    mx.random.uniform()
    again, later, single = wrap(both)(state, BATCH)[1], both(new, BATCH)[1], wrap(alone)(state, BATCH)[1]
    mx.random.state[0][:] = mx.array(before, mx.uint32)
    assert (first["a"].item(), first["b"].item()) == (again["a"].item(), again["b"].item())
    assert len({first["a"].item(), first["b"].item(), later["a"].item()}) == 3
    assert single["b"].item() == first["b"].item()


def test_a_measurement_draws_nothing_from_the_global_stream():
    step, state = step_with(Measurement("draw", lambda moment: {"": mx.random.uniform()}))
    before = mx.random.state[0].tolist()
    step(state, BATCH)
    assert mx.random.state[0].tolist() == before


def test_the_sums_of_the_metric_grad_norm_serve_the_measurements(monkeypatch):
    """On CUDA the sums of equal arrays are made by one kernel."""
    read = []
    monkeypatch.setattr(cuda, "serves", lambda arrays: len(arrays) > 0)
    monkeypatch.setattr(cuda, "sums", lambda kind, arrays: read.append(kind) or plain_sums(kind, arrays))
    m = ps.metrics
    step, state = step_with(m.grad_norms(), m.weight_norms(), m.noise_scale(), microbatches=2)
    metrics = step(state, BATCH)[1]
    # The sum of one microbatch, that of the second, the gradient, and the parameters.
    assert read == ["squares", "distances", "squares", "squares"]
    assert metrics["grad_norms/w"].item() == metrics["grad_norm"].item()


def test_steps_and_their_measurements_are_freed_without_the_collector():
    step, state = step_with(double, third)
    compiled = ps.compiled(step)
    compiled.at(0)(state, BATCH)
    gone = [weakref.ref(each) for each in (compiled, compiled.at(0), step, step.at(0))]
    gc.disable()
    try:
        del step, compiled
        assert [each() for each in gone] == [None] * 4
    finally:
        gc.enable()


def test_what_is_no_measurement_is_refused():
    for bad, message in [
        (double, "measure must be a list of measurements"),
        ("norms", "measure must be a list of measurements"),
        ([ps.metrics.grad_norms], "measure must hold measurements, got function"),
    ]:
        with pytest.raises(TypeError, match=message):
            ps.train_step(lambda params, batch, rng: params, ps.identity(), measure=bad)
    with pytest.raises(ValueError, match="two measurements named 'double'"):
        step_with(double, double)
    with pytest.raises(ValueError, match="every must be at least 1"):
        Measurement("a", lambda moment: {}, every=0)
    with pytest.raises(ValueError, match="name must be a string that is not empty"):
        Measurement("", lambda moment: {})


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (mx.array(1.0), "'bad' must return a dict, got a array"),
        ({"a": 1.0}, "the measurement bad/a must be a 0-d array, got float"),
        ({"a": mx.ones(2)}, "the measurement bad/a must be a 0-d array, got shape"),
        ({1: mx.array(1.0)}, "'bad' must have strings as keys, got 1"),
    ],
)
def test_results_that_are_no_metrics_are_refused(returned, message):
    step, state = step_with(Measurement("bad", lambda moment: returned))
    with pytest.raises((ValueError, TypeError), match=message):
        step(state, BATCH)


def test_a_measurement_may_not_take_the_name_of_a_metric():
    step, state = step_with(Measurement("loss", lambda moment: {"": mx.array(0.0)}))
    with pytest.raises(ValueError, match="a measurement may not be named loss"):
        step(state, BATCH)


@pytest.mark.parametrize(("first", "second"), [(("a", "b/c"), ("a/b", "c")), (("a", "b"), ("a/b", ""))])
def test_two_measurements_may_not_return_one_metric(first, second):
    one = mx.array(1.0)
    measure = [Measurement(name, lambda moment, key=key: {key: one}) for name, key in (first, second)]
    step, state = step_with(*measure)
    with pytest.raises(ValueError, match="'a' and 'a/b' both return a/b"):
        step(state, BATCH)


def test_measurements_need_no_second_forward_or_backward_pass():
    """The loss is evaluated once for each microbatch, and the graph has the same products."""
    calls = []
    with ps.rng.scope(mx.random.key(0)):
        apply, params, _ = ps.functional(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)))

    def loss_fn(params, batch, rng):
        calls.append(1)
        return ps.Mean.of(mx.square(apply(params, batch["x"])))

    m, transform, start = ps.metrics, ps.optimizers.adamw(1e-3), ps.tree.map(mx.zeros_like, params)
    measure = [
        m.grad_norms(), m.weight_norms(), m.drift(start), m.update_ratios(), m.nonfinite_share(),
        m.zero_share("updates"), m.noise_scale(), m.activations("*"),
    ]  # fmt: skip
    state, batch = ps.TrainState.create(params, transform), {"x": mx.ones((6, 4))}
    products = []
    for measurements in ([], measure):
        step = ps.train_step(loss_fn, transform, microbatches=2, measure=measurements)
        calls.clear()
        out = ps.compiled(step)(state, batch)
        assert len(calls) == 2
        dot = io.StringIO()
        mx.export_to_dot(dot, *ps.tree.leaves(out))
        products.append(len(re.findall(r'\[label ="(?:Matmul|AddMM)"', dot.getvalue())))
    assert products[0] == products[1] > 0


@pytest.mark.parametrize("split", ["params", "batch"])
def test_a_compiled_step_with_a_measurement_of_its_loss_and_a_model_that_splits_arrays(split):
    def loss_fn(params, batch, rng):
        left, right = mx.split(params["w"] if split == "params" else batch["x"], 2)
        return ps.Mean.of(left * right * params["w"].sum())

    again = Measurement("again", lambda moment: {"": moment.loss(moment.params, moment.batch).value})
    transform = ps.optimizers.sgd(0.1)
    state = ps.TrainState.create({"w": mx.arange(4.0)}, transform)
    step = ps.train_step(loss_fn, transform, measure=[again])
    _, metrics = ps.compiled(step)(state, {"x": mx.arange(4.0)})
    assert metrics["again"].item() == metrics["loss"].item()


def test_a_compiled_step_with_two_equal_measurements():
    def largest(moment):
        return {"": moment.gradients["w"].max()}

    transform = ps.optimizers.sgd(0.1)
    state = ps.TrainState.create({"w": mx.arange(4.0)}, transform)
    measure = [Measurement("one", largest), Measurement("two", largest)]
    step = ps.train_step(lambda params, batch, rng: mx.square(params["w"]).sum(), transform, measure=measure)
    _, metrics = ps.compiled(step)(state, {"x": mx.arange(4.0)})
    assert metrics["one"].item() == metrics["two"].item() == 6.0
