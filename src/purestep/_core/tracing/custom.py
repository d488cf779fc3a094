"""Functions with gradients of their own, whose graph can be read.

`mx.custom_function` leaves an operation in the graph that MLX cannot describe. While a graph is captured,
the functions made here leave marks of ordinary operations instead, and note what the marks stand for. The
reader of the graph puts the operation and its gradient in their place.
"""

import copy
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import tree

_MLX: Any = mx.custom_function
_CHECKPOINT: Any = mx.checkpoint


class Mark(NamedTuple):
    """One call of a function with its own gradient, as arrays of the graph that is being captured.

    The result `outputs[j]` is `values[j]` plus, for each floating input i, `total(i) * scales[j]` with
    `total(i)` the sum of `exp(inputs[i] * weights[i])`. MLX's gradient of these products multiplies the
    cotangent of `outputs[j]` by `scales[j]`, and gives the gradient of `inputs[i]` as a product with
    `weights[i]`.

    Attributes:
        inputs: the arguments.
        values: what the function returned.
        outputs: what its caller received.
        weights: a mark for each floating input, else `None`.
        scales: a mark for each output with a gradient, else `None`.
        cotangents: stand-ins for the cotangents of the outputs.
        gradients: those of the inputs, computed from the stand-ins; none if the function has no gradient.
    """

    inputs: list[mx.array]
    values: list[mx.array]
    outputs: list[mx.array]
    weights: list[mx.array | None]
    scales: list[mx.array | None]
    cotangents: list[mx.array]
    gradients: list[mx.array]


class Opaque(NamedTuple):
    """One call of an operation that MLX cannot describe.

    Attributes:
        name: of the operation.
        inputs: what it reads.
        outputs: stand-ins for what it returns.
    """

    name: str
    inputs: list[mx.array]
    outputs: list[mx.array]


class Captured(NamedTuple):
    """What a capture collects."""

    marks: list[Mark]
    opaque: list[Opaque]


Supply = Callable[[mx.array], mx.array]
"""Returns an array with the shape and dtype of another, which stands for a weight, scale or cotangent."""


class _Capture(threading.local):
    def __init__(self) -> None:
        self.now: Captured | None = None
        self.supply: Supply | None = None
        self.is_paused = False
        self.numbers = itertools.count()


_capture = _Capture()


@contextmanager
def capturing(supply: Supply | None = None) -> Iterator[Captured]:
    """Collect the marks of all functions with gradients of their own that this thread calls in the block.

    Args:
        supply: gives the stand-ins of the marks in a graph that will be run; `None`: constants, which are
            different numbers.
    """
    before, _capture.now = (_capture.now, _capture.supply), Captured([], [])
    _capture.supply = supply
    _capture.numbers = itertools.count()
    try:
        yield _capture.now
    finally:
        _capture.now, _capture.supply = before


@contextmanager
def paused() -> Iterator[None]:
    """Leave what this thread calls in the block out of the capture: its results are not used."""
    before, _capture.now = (_capture.now, _capture.is_paused), None
    _capture.is_paused = _capture.is_paused or before[0] is not None
    try:
        yield
    finally:
        _capture.now, _capture.is_paused = before


def is_paused() -> bool:
    """Tell whether this thread captures a graph, and is within `paused`."""
    return _capture.is_paused


def is_capturing() -> bool:
    """Tell whether this thread captures a graph."""
    return _capture.now is not None


def is_exporting() -> bool:
    """Tell whether the graph that this thread captures will be written to a file, and run."""
    return _capture.now is not None and _capture.supply is not None


def opaque(
    name: str, inputs: list[mx.array], shapes: list[tuple[tuple[int, ...], mx.Dtype]]
) -> list[mx.array]:
    """Return arrays that stand for the results of an operation, while a graph is captured."""
    assert _capture.now is not None
    if is_exporting():
        raise ValueError(f"Unable to get state for primitive {name}")  # as MLX says it
    total = sum((array.astype(mx.float32).sum() for array in inputs), mx.array(0.0))
    outputs = [mx.broadcast_to(total.astype(dtype), shape) for shape, dtype in shapes]
    _capture.now.opaque.append(Opaque(name, list(inputs), outputs))
    return outputs


class custom_function:  # noqa: N801
    """`mx.custom_function`, with the same decorators `vjp` and `vmap`; it can be captured."""

    def __init__(self, fun: Callable[..., Any]):
        self._fun = fun
        self._vjp: Callable[..., Any] | None = None
        self._function: Any = _MLX(fun)

    def vjp(self, fun: Callable[..., Any]) -> Callable[..., Any]:
        self._vjp = fun
        self._function.vjp(fun)
        return fun

    def vmap(self, fun: Callable[..., Any]) -> Callable[..., Any]:
        self._function.vmap(fun)
        return fun

    def jvp(self, fun: Callable[..., Any]) -> Callable[..., Any]:
        self._function.jvp(fun)
        return fun

    def __call__(self, *args: Any) -> Any:
        if _capture.now is None or self._vjp is None:
            return self._function(*args)
        return _marked(_capture.now.marks, self._fun, self._vjp, args)


class gradient_function(custom_function):  # noqa: N801
    """A `custom_function` of gradients: its own gradient serves second derivatives.

    Within `differentiated_once` a call is one of the plain function, and adds no operation to the graph. So
    each operation of the plain function must have the right gradient, or none: MLX then refuses a second
    derivative.
    """

    def __call__(self, *args: Any) -> Any:
        return self._fun(*args) if _once.now and _capture.now is None else super().__call__(*args)


class _Once(threading.local):
    def __init__(self) -> None:
        self.now = False


_once = _Once()


@contextmanager
def differentiated_once(once: bool) -> Iterator[None]:
    """Tell `gradient_function` that this thread takes first derivatives only in the block, or again not."""
    before, _once.now = _once.now, once
    try:
        yield
    finally:
        _once.now = before


def checkpoint(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Return MLX's `mx.checkpoint(fun)`; it can be captured."""
    original = _CHECKPOINT(fun)

    def call(*args: Any, **kwargs: Any) -> Any:
        if _capture.now is None:
            return original(*args, **kwargs)
        given = (args, kwargs)

        def run(*arrays: mx.array) -> Any:
            again, options = tree.unflatten(given, list(arrays))
            return fun(*again, **options)

        def backward(primals: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
            ordered: Any = mx.depends(_leaves(primals), _leaves(outputs))
            return mx.vjp(lambda *arrays: _leaves(run(*arrays)), ordered, _leaves(cotangents))[1]

        return _marked(_capture.now.marks, run, backward, tuple(tree.leaves(given)))

    return call


def _marked(
    marks: list[Mark], fun: Callable[..., Any], backward: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    result = fun(*args)
    # Handles of their own: the caller may change its own in place, by `+=`.
    inputs = [copy.copy(array) for array in _leaves(args)]
    values = [mx.stop_gradient(value) for value in _leaves(result)]
    weights: list[mx.array | None] = [None] * len(inputs)
    total = None
    for index, array in enumerate(inputs):
        if mx.issubdtype(array.dtype, mx.floating):
            weights[index] = mark = _stand_in(array)
            # The exponential lets a second derivative read the stand-in once more, so that it is refused.
            part = mx.exp(array * mark).sum().astype(mx.float32)
            total = part if total is None else total + part
    scales: list[mx.array | None] = [None] * len(values)
    outputs, cotangents = [], []
    for index, value in enumerate(values):
        if total is not None and mx.issubdtype(value.dtype, mx.floating):
            scales[index] = mark = _stand_in(value)
            outputs.append(value + mx.broadcast_to(total.astype(value.dtype), value.shape) * mark)
        else:
            outputs.append(value + _stand_in(value))
        cotangents.append(_stand_in(value))
    found = backward(
        args[0] if len(args) == 1 else args, _filled(result, cotangents), _filled(result, outputs)
    )
    marks.append(Mark(inputs, values, outputs, weights, scales, cotangents, _leaves(found)))
    return _filled(result, [copy.copy(output) for output in outputs])


def _stand_in(like: mx.array) -> mx.array:
    return _constant(like) if _capture.supply is None else _capture.supply(like)


def _constant(like: mx.array) -> mx.array:
    # MLX merges equal constants, and then all that is computed from them: two calls of a function with the
    # same arguments would leave one mark. So each constant is another number, and none that steps contain.
    number = next(_capture.numbers)
    if not mx.issubdtype(like.dtype, mx.floating):
        return mx.broadcast_to(mx.array(100 + number % 27, like.dtype), like.shape)
    mantissa, exponent = 1 + (1 + 2 * (number % 60)) / 128, number // 60
    least, count = (10, 5) if like.dtype == mx.float16 else (40, 60)
    return mx.broadcast_to(mx.array(mantissa * 2.0 ** (least + exponent % count), like.dtype), like.shape)


def _leaves(value: Any) -> list[mx.array]:
    return [leaf for leaf in tree.leaves(value) if isinstance(leaf, mx.array)]


def _filled(like: Any, arrays: list[mx.array]) -> Any:
    return tree.unflatten(like, arrays)
