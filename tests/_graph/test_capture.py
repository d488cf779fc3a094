"""Captured graphs: the operations that MLX runs, without running them."""

import io
import re
import threading
from collections import Counter
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps
from purestep._core.tracing.custom import custom_function
from purestep._graph.capture import capture
from purestep._graph.fusing import fused
from purestep._graph.nodes import ordered
from purestep._graph.scheduling import schedule
from tests._graph.steps import STEPS
from tests.refusals import parts

OTHER_NAMES = {"Rsqrt": "Sqrt", "Sum": "Reduce", "Max": "Reduce", "Min": "Reduce"}


def names(graph):
    return Counter(operation.name for operation in graph.operations())


def mlx_names(*arrays):
    """Return how often each operation is in MLX's own graph of unevaluated arrays."""
    dot = io.StringIO()
    mx.export_to_dot(dot, *arrays)
    found = (label.split()[0] for label in re.findall(r'\[label ="([^"]*)"', dot.getvalue()))
    short = ("Compiled" if name.startswith("Compiled") else name for name in found)
    return Counter(OTHER_NAMES.get(name, name) for name in short)


@pytest.mark.skipif(mx.default_device() == mx.Device(mx.gpu), reason="compared on a CPU only, so far")
@pytest.mark.parametrize("name", STEPS)
def test_the_kernels_are_those_of_mlx_compile(name):
    step, state, batch = STEPS[name]()
    graph = fused(capture(step, state, batch))
    mx.eval(state, batch)
    compiled = ps.compiled(step)(state, batch)
    assert names(graph) == mlx_names(*ps.tree.leaves(compiled))


def test_nothing_is_evaluated_and_unevaluated_weights_are_constants():
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    with ps.rng.scope(mx.random.key(0)):
        frozen = mx.random.normal((1000, 1000))  # drawn, not evaluated
    graph = capture(lambda x: x @ frozen, mx.zeros((1000, 1000)))
    assert mx.get_peak_memory() - before < 10_000
    assert [operation.name for operation in graph.operations()] == ["Matmul"]
    assert [constant.shape for constant in graph.constants] == [(1000, 1000)]


def test_a_function_with_its_own_gradient_is_one_operation_and_its_gradient_is_inserted():
    @custom_function
    def exp(x):
        return mx.exp(x)

    @exp.vjp
    def backward(primal, cotangent, output):
        return mx.tanh(cotangent) * output

    graph = capture(mx.grad(lambda x: exp(mx.sin(x)).sum()), mx.zeros(3))
    assert names(graph)["CustomTransforms"] == 1
    assert names(graph)["Tanh"] == 1
    assert names(graph)["Exp"] == 1
    (tanh,) = (each for each in graph.operations() if each.name == "Tanh")
    assert tanh.inputs[0].shape == (3,)


def test_a_result_may_be_changed_in_place():
    @custom_function
    def double(x):
        return x * 2

    @double.vjp
    def _(primal, cotangent, output):
        return mx.tanh(cotangent)

    def loss(x):
        found = double(x)
        found += 1
        return found.sum()

    assert names(capture(loss, mx.zeros(3)))["Add"] == 1
    assert names(capture(mx.grad(loss), mx.zeros(3)))["Tanh"] == 1


@pytest.mark.parametrize("outputs", [1, 2])
def test_own_gradients_nest_and_may_have_several_outputs_or_integer_inputs(outputs):
    @custom_function
    def inner(x):
        return x * 2

    @inner.vjp
    def _(primal, cotangent, output):
        return mx.sinh(cotangent)

    @custom_function
    def outer(x, index):
        return [inner(x[index]) for _ in range(outputs)]

    @outer.vjp
    def _(primals, cotangents, found):
        x, index = primals
        total = sum(mx.cosh(each) for each in cotangents)
        return mx.zeros_like(x).at[index].add(mx.grad(lambda y: (inner(y) * total).sum())(x[index])), index

    def loss(x):
        return sum(each.sum() for each in outer(x, mx.array([1, 2])))

    found = names(capture(mx.grad(loss), mx.zeros(5)))
    assert found["Cosh"] in (1, outputs)  # equal ones are merged
    assert found["Sinh"] == 1


def test_user_code_that_calls_mlx_is_captured():
    def loss(x):
        @mx.custom_function
        def double(x: Any) -> Any:
            return 2 * x

        @double.vjp
        def _(primal, cotangent, output):
            return mx.arctan(cotangent)

        again: Any = mx.checkpoint(lambda x: double(mx.sin(x)))
        return again(nn.silu(x)).sum()

    found = names(capture(mx.grad(loss), mx.zeros(3)))
    assert found["ArcTan"] == 1
    assert found["Sin"] >= 1
    assert found["CustomTransforms"] >= 2
    assert mx.custom_function.__module__ == "mlx.core"  # put back


def test_an_operation_is_scheduled_after_those_that_it_reads():
    graph = fused(capture(*STEPS["microbatches"]()))
    done = set()
    order = schedule(graph.outputs, graph.operations())
    assert len(order) == len(graph.operations())
    for operation in order:
        assert all(value.maker is None or value.maker in done for value in operation.inputs)
        done.add(operation)


def test_lazily_loaded_arrays_are_refused(tmp_path):
    mx.save(str(tmp_path / "w.npy"), mx.ones(3))
    weight = mx.load(str(tmp_path / "w.npy"))
    with pytest.raises(ValueError, match=parts("capture: ... operations ... Load")):
        capture(lambda x: x * weight, mx.zeros(3))
    assert mx.custom_function.__module__ == "mlx.core"


def test_arrays_of_compiled_functions_and_gradients_of_their_own_are_refused_in_plain_words():
    weight = mx.ones(3)
    twice = mx.compile(lambda x: mx.exp(x) * 2)

    @mx.custom_function
    def early(x: Any) -> Any:
        return mx.exp(x)

    early.vjp(lambda primal, cotangent, output: cotangent * output)
    assert names(capture(lambda x: twice(x) + weight, mx.zeros(3)))["Exp"] == 1
    with pytest.raises(ValueError, match=parts("predict: ... Compiled: ... only constants ... evaluate")):
        capture(lambda x: twice(weight) + x, mx.zeros(3), caller="predict")
    with pytest.raises(ValueError, match=parts("capture: ... CustomTransforms: ... made before; make it")):
        capture(lambda x: early(x), mx.zeros(3))


def test_the_compile_mode_of_the_process_is_left_alone():
    def traces():
        """Return how often a compiled function runs its Python function in two calls."""
        runs = []
        function = mx.compile(lambda x: (runs.append(1), x + 1)[1])
        function(mx.zeros(2)), function(mx.zeros(2))
        return len(runs)

    within = []
    capture(lambda x: (within.append(traces()), x)[1], mx.zeros(3))
    try:
        mx.disable_compile()
        capture(mx.exp, mx.zeros(3))
        assert traces() == 2
    finally:
        mx.enable_compile()
    assert within == [1]


def test_captures_in_several_threads_put_back_what_they_replace():
    before = mx.custom_function, mx.checkpoint
    started, ended = threading.Event(), threading.Event()

    def slow(x):
        started.set()
        ended.wait(20)
        return mx.exp(x)

    def capture_slowly():
        capture(slow, mx.zeros(3))

    def captured(x):
        thread.start()  # it begins within this capture and ends after it
        started.wait(20)
        return mx.exp(x)

    thread = threading.Thread(target=capture_slowly)
    capture(captured, mx.zeros(3))
    ended.set()
    thread.join(20)
    assert (mx.custom_function, mx.checkpoint) == before


def test_a_function_called_twice_with_the_same_arguments_is_there_twice():
    @custom_function
    def halves(x):
        return [x[:2], x[2:]]

    @halves.vjp
    def _(primals, cotangents, outputs):
        return mx.concatenate(cotangents)

    def loss(x):
        first, second = halves(x), halves(x)
        return (first[0] * second[1]).sum()

    graph = capture(mx.grad(loss), mx.zeros(4))
    known = {*graph.inputs, *graph.constants}
    for operation in ordered(graph.outputs):
        assert known.issuperset(operation.inputs), operation.name
        known.update(operation.outputs)
