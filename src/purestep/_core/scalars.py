"""Scalars: float32 conversion, square roots, counts, factors of arrays."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlx.core as mx

_MOST = 2**31 - 1  # the largest int32


def float32(value: float | mx.array) -> mx.array:
    """Return a Python number or an array as a float32 array.

    `mx.array(value)` of an array would add a conversion, which is one more kernel in a step.
    """
    return value.astype(mx.float32) if isinstance(value, mx.array) else mx.array(value, mx.float32)


class _Traced(threading.local):
    def __init__(self) -> None:
        self.mapped = False
        self.differentiated = False


_traced = _Traced()


@contextmanager
def over_members() -> Iterator[None]:
    """Let `beside` prepare scalars for `mx.vmap` within the `with` block, in this thread."""
    before, _traced.mapped = _traced.mapped, True
    try:
        yield
    finally:
        _traced.mapped = before


def beside(scalar: mx.array, array: mx.array) -> mx.array:
    """Return a 0-d factor of an array, in a form that is fast where each member of a population has its own.

    When `mx.vmap` broadcasts an array to more axes, it puts the members last. The array beside it is then
    read in transposed order: on a CPU an update takes three times as long. With the number of axes of the
    array, the members stay first. Elsewhere a 0-d factor is faster, and is returned unchanged.
    """
    return scalar.reshape((1,) * array.ndim) if _traced.mapped and array.ndim else scalar


@contextmanager
def differentiated(active: bool = True) -> Iterator[None]:
    """Let `flat_at_zero` act within the `with` block, in this thread: the gradient of a step is needed."""
    before, _traced.differentiated = _traced.differentiated, active
    try:
        yield
    finally:
        _traced.differentiated = before


def is_differentiated() -> bool:
    """Tell whether the thread is within `differentiated()`."""
    return _traced.differentiated


def flat_at_zero(function: Callable[[mx.array], mx.array], x: mx.array, *, below: float = 0.0) -> mx.array:
    """Return `function(x)`, such as a root, with a derivative of 0 where `x` is 0, and not infinity.

    `below` is a bound above 0 within which the derivative overflows: there, too, it is 0.

    Only within `differentiated()`: a step that is not differentiated must not pay for it. The values are the
    same bits.

    >>> moments = mx.array([0.0, 4.0])
    >>> with differentiated():
    ...     mx.grad(lambda x: flat_at_zero(mx.sqrt, x).sum())(moments)
    array([0, 0.25], dtype=float32)
    """
    if not _traced.differentiated:
        return function(x)
    zero = x <= below
    return mx.where(zero, mx.stop_gradient(function(x)), function(mx.where(zero, 1.0, x)))


def root(square: mx.array) -> mx.array:
    """Return the square root, with a derivative of 0 at 0.

    With `mx.sqrt` the derivative of a norm of zeros would be infinity times zero, which is NaN.

    >>> mx.grad(lambda x: root(mx.square(x).sum()))(mx.zeros(2))
    array([0, 0], dtype=float32)
    """
    zero = square == 0
    return mx.where(zero, 0.0, mx.sqrt(mx.where(zero, 1.0, square)))


def increment(count: mx.array, by: int | mx.array = 1) -> mx.array:
    """Return `count + by`, but at most the largest int32: a count does not wrap.

    >>> increment(mx.array(2**31 - 2)), increment(mx.array(2**31 - 1))
    (array(2147483647, dtype=int32), array(2147483647, dtype=int32))
    """
    return mx.minimum(count, _MOST - by) + by


def elapsed(count: int | mx.array, begin: int = 0, longest: int = 0) -> mx.array:
    """Return `count - begin`, subtracted as integers: float32 cannot represent odd numbers above 2**24.

    Args:
        count: an integer or an integer array; for a floating-point array the difference is float32.
        begin: at least 0.
        longest: the largest number that the difference will be compared with or divided by. The result is
            int64 if this number or `begin` does not fit int32.

    >>> elapsed(mx.array(2**24 + 1), 2**24)
    array(1, dtype=int32)
    """
    count = count if isinstance(count, mx.array) else mx.array(count)
    if not mx.issubdtype(count.dtype, mx.integer):
        return count.astype(mx.float32) - begin
    wide = count.dtype in (mx.int64, mx.uint64, mx.uint32) or max(begin, longest) > _MOST
    count = count.astype(mx.int64 if wide else mx.int32)
    return count - begin if begin else count
