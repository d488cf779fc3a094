"""Accurate float32 sums and means of any length.

On a CPU, MLX adds a long row in order. The sum of 2^25 ones is then 2^24, and the sum of equal numbers loses
digits much earlier. Here a few neighbours are added at a time, then those sums, and so on. A stage adds
at most 32 numbers in a row, or up to 64 if no number from 8 to 32 divides the length.
"""

import functools
import math
from collections.abc import Sequence

import mlx.core as mx

from purestep._core import hardware

_CHAIN = 32  # additions in a row, each with a relative error of at most 2^-24
_MANY = 2**14  # numbers that a GPU adds at once without losing digits
_PARTS = 16  # numbers to add at a time: a compromise of speed and accuracy


def total(
    x: mx.array,
    axis: int | Sequence[int] | None = None,
    *,
    keepdims: bool = False,
    chain: int = _CHAIN,
) -> mx.array:
    """Return the sum of an array in float32, over all axes or some.

    The relative error stays below 1e-6, also for 2^26 equal numbers. Up to 32 numbers are one plain sum. For
    more numbers, each stage on a CPU makes the array about 16 times smaller. A GPU adds in parallel: there a
    sum of more than 2^14 numbers takes two or three stages. Stages are views and plain sums, so the result
    can be differentiated, vmapped and compiled like a plain sum.

    Args:
        x: any shape; the sum is float32.
        axis: the axis or axes to sum over, without repetition; `None` for all.
        keepdims: keep the summed axes, with length 1.
        chain: how many numbers one plain sum may add. Twice as many double the error and save a stage.

    >>> total(mx.ones((2**25,))).item()
    33554432.0
    """
    x = x.astype(mx.float32)
    axes = _axes(axis, x.ndim)
    if x.size == 0:  # on a CPU, MLX's sum of an empty array may never return
        lengths = [1 if each in axes else length for each, length in enumerate(x.shape)]
        zeros = mx.zeros(lengths)
        return zeros if keepdims else zeros.squeeze(axes)
    if hardware.on_gpu():
        while math.prod(x.shape[each] for each in axes) > _MANY and (shorter := _in_rows(x, axes)) is not x:
            x = shorter
        return x.sum(axis=axes, keepdims=keepdims)
    while math.prod(x.shape[each] for each in axes) > chain:
        x = _stage(x, axes)
    return x.sum(axis=axes, keepdims=keepdims)


def mean(x: mx.array, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> mx.array:
    """Average an array in float32, over all its axes or over some; the sum is that of `total`.

    >>> mean(mx.full((2**20, 2), 0.1), axis=0)
    array([0.1, 0.1], dtype=float32)
    """
    count = math.prod(x.shape[each] for each in _axes(axis, x.ndim))
    return total(x, axis, keepdims=keepdims) / count


def _in_rows(x: mx.array, axes: list[int]) -> mx.array:
    """Add rows of up to 1024 neighbours along the longest axis; return the array itself if none divide it."""
    axis = max(axes, key=lambda each: x.shape[each])
    parts = _row(x.shape[axis])
    shape = list(x.shape)
    shape[axis : axis + 1] = [shape[axis] // parts, parts]
    return x.reshape(shape).sum(axis=axis + 1) if parts > 1 else x


@functools.cache
def _row(length: int) -> int:
    """Return the largest divisor of a length up to 1024, or 1 if it is less than 32."""
    divisor = next(each for each in range(min(1024, length), 0, -1) if length % each == 0)
    return divisor if divisor >= _CHAIN else 1


def _axes(axis: int | Sequence[int] | None, ndim: int) -> list[int]:
    if axis is None:
        return list(range(ndim))
    return [each % ndim for each in ((axis,) if isinstance(axis, int) else axis)]


def _stage(x: mx.array, axes: list[int]) -> mx.array:
    """Add neighbours along the first axis that divides well; the axis stays and becomes shorter."""
    parts = {each: _parts(x.shape[each]) for each in axes}
    axis = max(axes, key=lambda each: (parts[each] >= _PARTS // 2, parts[each] > 1, -each))
    if parts[axis] == 1:
        axis = max(axes, key=lambda each: x.shape[each])
        parts[axis] = _PARTS
        # A slice and its rest would each have a gradient of full size.
        x = mx.pad(x, [(0, -x.shape[each] % _PARTS if each == axis else 0) for each in range(x.ndim)])
    # The reshape is a view, also of a transposed array such as the gradient of a matrix. Neighbours are added
    # fast in both layouts; other parts take 15 times as long in a transposed array.
    shape = list(x.shape)
    shape[axis : axis + 1] = [shape[axis] // parts[axis], parts[axis]]
    return x.reshape(shape).sum(axis=axis + 1)


@functools.cache
def _parts(length: int) -> int:
    """Return how many neighbours to add at a time, at most 64; 1 if no good number divides the length."""
    if length <= _CHAIN:
        return length
    best = _PARTS if length > _CHAIN**2 else math.isqrt(length)
    divisors = [parts for parts in range(_PARTS // 2, _CHAIN + 1) if length % parts == 0]
    return min(divisors, key=lambda parts: abs(parts - best), default=length if length <= 2 * _CHAIN else 1)
