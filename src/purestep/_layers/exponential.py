"""The exponential on a Linux CPU, by operations that a compiler turns into vector instructions.

There MLX computes an exponential element by element, in 9 ns. The operations here take 1 ns in a compiled
step and 5 ns elsewhere. Their relative error is below 2e-7; that of `mx.exp` on a CPU is up to 4e-6.
"""

import sys
from typing import Any

import mlx.core as mx

from purestep._core import hardware
from purestep._core.tracing.custom import custom_function

_LOWEST = 88.0  # exp(-88) counts as 0
_ROUNDING = 1.5 * 2**23  # a sum with it is rounded to an integer
_LOG_E = 1.4426950408889634  # the binary logarithm of e
_LN_2 = (0.693359375, -2.12194440e-4)  # two parts; small integers times the first are exact
# (exp(r) - 1 - r) / r**2 for |r| below ln(2) / 2, with a relative error of exp(r) below 4e-9.
_POLYNOMIAL = (0.49999993, 0.16666520, 0.041668391, 0.0083687452, 0.0013814543)
SMALL = 1 << 14  # fewer elements take longer this way: each operation has a cost of its own


def serves(x: mx.array) -> bool:
    """Tell whether `exp` computes the exponential of an array by itself and not by `mx.exp`."""
    # On a Mac, MLX uses vector instructions by itself.
    return x.dtype == mx.float32 and x.size >= SMALL and sys.platform != "darwin" and not hardware.on_gpu()


def exp(x: mx.array) -> mx.array:
    """Return `exp(x)` for numbers up to 88, which are not checked; if `serves(x)`, it is 0 below -87.7.

    It can be differentiated any number of times. NaN stays NaN.

    >>> exp(mx.array([0.0, 1.0, -mx.inf]))
    array([1, 2.71828, 0], dtype=float32)
    """
    return _exp(x) if serves(x) else mx.exp(x)


def _by_parts(x: mx.array) -> mx.array:
    """Return 2**n exp(r), with an integer n and |r| below ln(2) / 2.

    Each of the three kernels that MLX makes of this reads its inputs once. The last one is 11 operations
    deep; if it were deeper, it would be two kernels. A `maximum` of integers takes half the time of one of
    floats, because NaN needs no attention: it stays in `r`.
    """
    x = mx.stop_gradient(x)  # or `mx.jvp` would differentiate the operations too
    whole = mx.maximum(((x * _LOG_E + _ROUNDING) - _ROUNDING).astype(mx.int32), -127)
    power = ((whole + 127) << 23).view(mx.float32)  # the bits of an exponent; -127 gives 0
    n = whole.astype(mx.float32)
    r = (mx.minimum(-x, _LOWEST) + n * _LN_2[0]) + n * _LN_2[1]  # -r
    square = r * r
    c2, c3, c4, c5, c6 = _POLYNOMIAL
    low = (1 - r) + square * (c2 - c3 * r)
    return (low + (square * square) * ((c4 - c5 * r) + square * c6)) * power


_exp: Any = custom_function(_by_parts)


@_exp.vjp
def _(x: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    return cotangent * output


@_exp.jvp
def _(x: mx.array, tangent: mx.array) -> mx.array:
    return tangent * exp(x)


def softmax(x: mx.array) -> mx.array:
    """Return the softmax of the last axis; like `exp`, it is computed by itself if `serves(x)`.

    >>> softmax(mx.zeros((1, 4)))
    array([[0.25, 0.25, 0.25, 0.25]], dtype=float32)
    """
    return _softmax(x) if serves(x) else mx.softmax(x, axis=-1, precise=True)


@custom_function
def _softmax(x: mx.array) -> mx.array:
    e = exp(x - mx.stop_gradient(x.max(axis=-1, keepdims=True)))
    return e * (1 / e.sum(axis=-1, keepdims=True))


@_softmax.vjp
def _(x: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    return output * (cotangent - (cotangent * output).sum(axis=-1, keepdims=True))
