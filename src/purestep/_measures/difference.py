"""Differences of two arrays: in bits, in units of the last place, absolute and relative."""

from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import norms

_WORDS = {mx.float16: mx.int16, mx.bfloat16: mx.int16, mx.float32: mx.int32, mx.float64: mx.int64}


class Difference(NamedTuple):
    """The difference of two arrays with the same shape and dtype.

    Attributes:
        same_bits: whether they are equal bit for bit.
        max_abs: the largest absolute difference; NaN if an element is NaN in only one array.
        relative: the norm of the difference over that of the second array's finite elements.
        ulps: the largest difference in units of the last place, without the elements that are NaN in either
            array; `None` for dtypes that are not floating-point.
    """

    same_bits: bool
    max_abs: float
    relative: float
    ulps: int | None


def difference(first: mx.array, second: mx.array) -> Difference:
    """Return the difference of two arrays with the same shape and dtype. Waits for the device.

    >>> difference(mx.array([1.0, 2.0]), mx.array([1.0, 2.0000002]))[::3]
    (False, 1)
    """
    if first.size == 0 or bool(mx.array_equal(bit_pattern(first), bit_pattern(second)).item()):
        return Difference(True, 0.0, 0.0, 0 if first.dtype in _WORDS else None)
    if mx.issubdtype(first.dtype, mx.complexfloating):
        a, b = first, second
    else:
        # int64 holds the difference of any two integers that are not themselves 64 bits wide.
        wide = mx.float32 if mx.issubdtype(first.dtype, mx.floating) else mx.int64
        wide = first.dtype if first.dtype == mx.float64 else wide
        a, b = first.astype(wide), second.astype(wide)
    alike = (a == b) | ((a != a) & (b != b))
    apart = mx.where(alike, mx.zeros_like(a), a - b)  # equal infinities, and NaN in both, count as equal
    size = mx.abs(apart).astype(mx.float32)
    finite = mx.where(mx.isfinite(b), mx.abs(b).astype(mx.float32), 0.0)
    norm, whole = norms.norm(finite), norms.norm(size)
    return Difference(
        False,
        _number(mx.where(mx.isnan(size).any(), mx.nan, size.max())),
        _number(mx.where(whole == 0, 0.0, whole / norm)),
        _ulps(first, second),
    )


def bit_pattern(array: mx.array) -> mx.array:
    """Return an array that is equal only for equal bits: NaN equals the same NaN, 0.0 differs from -0.0."""
    if array.dtype == mx.complex64:
        return array.reshape(-1).view(mx.int32)
    return array.view(_WORDS[array.dtype]) if array.dtype in _WORDS else array


def _ulps(first: mx.array, second: mx.array) -> int | None:
    if first.dtype not in _WORDS:
        return None
    word = _WORDS[first.dtype]

    def rank(array: mx.array) -> mx.array:
        # Bit patterns are in the order of the floats if these are positive, and reversed if negative.
        whole = array.view(word).astype(mx.int64)
        return mx.where(whole < 0, -(whole + (1 << (8 * word.size - 1))), whole)

    both = ~mx.isnan(first) & ~mx.isnan(second)
    return int(_number(mx.where(both, mx.abs(rank(first) - rank(second)), 0).max()))


def _number(value: mx.array) -> Any:
    return value.item()
