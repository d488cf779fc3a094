"""Compiled steps: the same function, traced once."""

import io
from typing import Any

import mlx.core as mx
import pytest

import purestep as ps
from purestep._core import cuda
from purestep._core.tracing import custom
from tests.training import BATCH, PARAMS, TRANSFORM, classifier, ragged, start
from tests.trees import same_bits


@pytest.fixture(scope="module")
def step():
    """Return one compiled step for all tests, so that its kernels are built once."""
    return ps.compiled(ps.train_step(classifier, TRANSFORM), max_traces=2)


def test_a_compiled_step_equals_the_eager_one_and_is_traced_once(step):
    eager = ps.train_step(classifier, TRANSFORM)
    a = b = start()
    for number in range(4):
        a, compiled_metrics = step(a, ragged(number))
        b, eager_metrics = eager(b, ragged(number))
        for x, y in zip(
            ps.tree.leaves((a, compiled_metrics)), ps.tree.leaves((b, eager_metrics)), strict=True
        ):
            assert mx.allclose(x, y, rtol=1e-5, atol=1e-6)
    assert ps.tree.alike(a, b)
    assert step.traces == 1


def test_two_calls_with_one_state_give_the_same_bits(step):
    assert same_bits(step(start(), BATCH), step(start(), BATCH))


def test_too_many_shapes_are_refused_by_path_and_known_ones_go_on(step):
    for rows in (8, 6):
        step(start(), {name: leaf[:rows] for name, leaf in BATCH.items()})
    with pytest.raises(
        ValueError, match=r"^compiled: the step .* traced 3 times, max_traces is 2: "
    ) as error:
        step(start(), {name: leaf[:5] for name, leaf in BATCH.items()})
    assert "float32 (8, 5, 4), float32 (6, 5, 4), float32 (5, 5, 4)" in str(error.value)
    assert "params" not in str(error.value)
    step(start(), BATCH)
    assert step.traces == 2


def test_a_dtype_that_varies_is_named():
    step = ps.compiled(lambda state, batch: (state, {"x": batch["x"]}), max_traces=1)
    step(start(), {"x": mx.ones(2)})
    with pytest.raises(ValueError, match=r"batch\.x .*float32 \(2,\), int32 \(2,\)\."):
        step(start(), {"x": mx.array([1, 2])})


def test_python_numbers_and_foreign_arrays_are_refused_by_path_before_a_trace():
    import numpy as np

    traced = []
    step = ps.compiled(lambda state, batch: traced.append(1) or (state, {}))
    with pytest.raises(TypeError, match=r"compiled: batch\.x .*Python number 0\.5;.* mx\.array\(0\.5\)"):
        step(start(), {"x": 0.5})
    with pytest.raises(TypeError, match=r"compiled: state\.params\.w .*Python number 1"):
        step(start().replace(params={"w": 1}), BATCH)
    with pytest.raises(TypeError, match=r"compiled: batch\.x .* mx\.array, got numpy's ndarray"):
        step(start(), {"x": np.ones(3)})
    assert not traced


def test_an_error_in_a_trace_leaves_the_step_usable():
    calls = []

    def step(state, batch):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("first")
        return state, {"sum": batch["x"].sum()}

    step = ps.compiled(step)
    with pytest.raises(RuntimeError, match="first"):
        step(start(), {"x": mx.ones(3)})
    assert step(start(), {"x": mx.ones(3)})[1]["sum"].item() == 3.0
    assert step.traces == 1


def test_a_loss_function_is_traced_once_for_each_shape():
    calls = []

    def loss_fn(params, batch, rng):
        calls.append(1)
        return (params["w"] * batch["x"]).sum()

    transform = ps.identity()
    step = ps.compiled(ps.train_step(loss_fn, transform))
    state = start(transform, {"w": mx.array(1.0)})
    for _ in range(3):
        state, _ = step(state, {"x": mx.ones(2)})
    assert len(calls) == 1


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="^compiled: max_traces .* 1, got 0"):
        ps.compiled(lambda state, batch: (state, batch), max_traces=0)
    with pytest.raises(TypeError, match="^compiled: step .* callable, got 3"):
        ps.compiled(3)


def test_none_in_the_parameters_survives():
    assert PARAMS["unused"] is None
    assert ps.train_step(classifier, TRANSFORM)(start(), BATCH)[0].params["unused"] is None


def test_what_mlx_cannot_compile_is_named():
    def product(w):
        left, right = mx.split(w, 2)
        return (left * right).sum()

    def step(w, batch):
        slope = mx.grad(product)(w)
        left, right = mx.split(w, 2)
        return slope + batch, left + 1, right + 2

    with pytest.raises(
        RuntimeError, match=r"compiled: MLX cannot compile this step.*mx\.split is used twice"
    ):
        ps.compiled(step)(mx.arange(4.0), mx.array(1.0))

    def own(state, batch):
        return [][state.ndim]

    with pytest.raises(IndexError, match="list index"):
        ps.compiled(own)(mx.zeros(1), mx.zeros(1))


def kernel(x):
    """Twice `x`, by a stand-in for a kernel of one's own: it has no gradient."""

    @mx.custom_function
    def function(x):
        return 2 * x

    @function.vjp
    def _(*_):
        raise ValueError("[Primitive::vjp] Not implemented for CustomKernel.")

    return function(x)


square: Any = custom.custom_function(lambda x: x * x)
slope: Any = custom.gradient_function(lambda x, c: kernel(x * c) if cuda.allowed() else 2 * x * c)


@square.vjp
def _(x, cotangent, _):
    return slope(x, cotangent)


@slope.vjp
def _(primals, tangent, _):
    x, cotangent = primals
    return 2 * cotangent * tangent, 2 * x * tangent


def test_a_function_of_gradients_is_an_operation_only_where_it_is_differentiated():
    first = ps.compiled(lambda x, batch: mx.grad(square)(x))
    second = ps.compiled(lambda x, batch: mx.grad(mx.grad(square))(x))
    x, none = mx.array(3.0), mx.array(0.0)
    dot = io.StringIO()
    mx.export_to_dot(dot, first(x, none))
    assert dot.getvalue().count("CustomTransforms") == 1  # the stand-in
    assert first(x, none).item() == 6
    assert second(x, none).item() == 2
    assert mx.grad(lambda x: first(x, none))(x).item() == 2
    around = ps.compiled(lambda x, batch: mx.grad(lambda x: first(x, none))(x))
    assert around(x, none).item() == 2
