"""Activations whose gradient is a formula of the input, and keeps nothing else.

MLX differentiates an activation operation by operation. `mlx.nn.gelu_approx` then takes a power, a `tanh` and
a `cosh`, and keeps five arrays of the input's size for the gradient. The values here are
those of `mlx.nn` bit for bit, with two exceptions: a GPU computes `gelu_approx` in float32, and a CPU uses
`exponential.exp` for large float32 arrays. That changes the last digit and takes a tenth of the time.
"""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from purestep._core import hardware
from purestep._core.tracing.custom import custom_function
from purestep._core.tracing.ordering import after
from purestep._layers import exponential

Activation = Callable[[mx.array], mx.array]

_ROOT = math.sqrt(2 / math.pi)
_MOST = 88.0  # the largest argument of `exponential.exp`


def _with_slope(forward: Activation, slope: Activation) -> Activation:
    """Return `forward` with the derivative `slope`, a float32 function of the float32 input."""
    function: Any = custom_function(forward)

    @function.vjp
    def _(x: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        # MLX would else compute parts of the slope with the forward pass, and keep them.
        (x,) = after([x], [cotangent])
        return (cotangent.astype(mx.float32) * slope(x.astype(mx.float32))).astype(x.dtype)

    return function


def _gelu_slope(x: mx.array) -> mx.array:
    """Return the derivative of `x * cdf(x)`, with an absolute error below 4e-7."""
    if hardware.on_gpu():
        return 0.5 * (1 + mx.erf(math.sqrt(0.5) * x)) + x * (
            (1 / math.sqrt(2 * math.pi)) * mx.exp(-0.5 * (x * x))
        )
    size = mx.minimum(mx.abs(x), 1e4)
    inner = exponential.exp(-0.5 * (size * size)) * (size / math.sqrt(2 * math.pi) - _tail(size))
    above = (x > 0).astype(mx.float32)  # MLX's `where` takes seven times as long
    return above + (2 * above - 1) * inner


def _tail(size: mx.array) -> mx.array:
    """Return `exp(x**2 / 2) (1 - cdf(x))` for x of at least 0 (Abramowitz and Stegun, 7.1.26).

    On a CPU `erf` is slow, and the density of the normal distribution needs the same exponential.
    """
    t = 1 / (1 + (0.3275911 * math.sqrt(0.5)) * size)
    square = t * t
    low = 0.127414796 - 0.142248368 * t
    high = 0.7107068705 + t * (-0.7265760135 + 0.5307027145 * t)
    return t * (low + square * high)


def _gelu_approx_slope(x: mx.array) -> mx.array:
    """Return the derivative of GELU's `tanh` form, with an absolute error below 4e-7, on a GPU 2e-6."""
    if hardware.on_gpu():
        # MLX fuses at most 11 operations in a row. With the casts before and after these are 11.
        square = x * x
        s = mx.sigmoid(x * (2 * _ROOT + (2 * _ROOT * 0.044715) * square))
        return s + (1 - s) * (s * (x * (2 * _ROOT + (2 * _ROOT * 0.134145) * square)))
    x = _clipped(x, 20.0)  # beyond, the derivative is 0 or 1
    square = x * x
    s, slope = _logistic(x * (2 * _ROOT + (2 * _ROOT * 0.044715) * square))
    return s + x * slope * (2 * _ROOT * (1 + 0.134145 * square))


def _silu_slope(x: mx.array) -> mx.array:
    if hardware.on_gpu():
        s = mx.sigmoid(x)
        return s * (1 + x * (1 - s))
    x = _clipped(x, 1e3)
    s, slope = _logistic(x)
    return s + x * slope


def _logistic(x: mx.array) -> tuple[mx.array, mx.array]:
    """Return `sigmoid(x)` and its derivative, in which `1 - sigmoid(x)` would lose digits."""
    e = exponential.exp(-mx.abs(x))
    near = 1 / (1 + e)
    far = e * near
    return far + (x > 0).astype(mx.float32) * (near - far), near * far


def _mish_slope(x: mx.array) -> mx.array:
    # With e = exp(x), tanh(softplus(x)) is e (e + 2) / (e (e + 2) + 2). From 20 on it is 1.
    x = mx.minimum(x, 20.0)
    e = exponential.exp(x)
    above = e * (e + 2)
    below = above + 2
    return above / below + 4 * x * (e / below) * ((1 + e) / below)


def _clipped(x: mx.array, most: float) -> mx.array:
    """Return `x` between `-most` and `most`; on a CPU `mx.maximum` takes twice as long as `mx.minimum`."""
    return -mx.minimum(-mx.minimum(x, most), most)


def _gelu_forward(x: mx.array) -> mx.array:
    if not exponential.serves(x):
        return nn.gelu(x)
    size = mx.abs(x)
    near = mx.minimum(size, 100.0)
    return 0.5 * (x + size) - near * (exponential.exp(-0.5 * (near * near)) * _tail(near))


def _mish_forward(x: mx.array) -> mx.array:
    if not exponential.serves(x):
        return nn.mish(x)
    e = exponential.exp(mx.minimum(x, 20.0))
    above = e * (e + 2)
    return x * (above / (above + 2))


def _silu_forward(x: mx.array) -> mx.array:
    return _gated(x, -x) if exponential.serves(x) else nn.silu(x)


def _gated(x: mx.array, negative: mx.array) -> mx.array:
    """Return `x * sigmoid(-negative)`."""
    return -mx.minimum(-x, 1e3) / (1 + exponential.exp(mx.minimum(negative, _MOST)))


def _gelu_approx_forward(x: mx.array) -> mx.array:
    """Return GELU's `tanh` form; on a GPU in float32, rounded once, without MLX's `power`."""
    if exponential.serves(x):
        return _gated(x, x * (-2 * _ROOT - (2 * _ROOT * 0.044715) * (x * x)))
    if not hardware.on_gpu():
        return nn.gelu_approx(x)
    wide = x.astype(mx.float32)
    inner = wide * (2 * _ROOT + (2 * _ROOT * 0.044715) * (wide * wide))
    return (wide * mx.sigmoid(inner)).astype(x.dtype)


_gelu = _with_slope(_gelu_forward, _gelu_slope)
_gelu_approx = _with_slope(_gelu_approx_forward, _gelu_approx_slope)
_mish = _with_slope(_mish_forward, _mish_slope)
_silu = _with_slope(_silu_forward, _silu_slope)


def gelu(x: mx.array) -> mx.array:
    """Return `x * cdf(x)`, with `cdf` that of the standard normal distribution.

    The value is that of `mlx.nn.gelu`, to the last digit. The absolute error of the derivative is below 4e-7.

    Args:
        x: floating, any shape, as for the other activations.

    Reference: Hendrycks and Gimpel, arXiv:1606.08415.

    >>> gelu(mx.array([-1.0, 0.0, 1.0]))
    array([-0.158655, 0, 0.841345], dtype=float32)
    """
    return _gelu(x)


def gelu_approx(x: mx.array) -> mx.array:
    """Return GELU in its `tanh` form (arXiv:1606.08415), the value of `mlx.nn.gelu_approx`.

    >>> gelu_approx(mx.array([-1.0, 0.0, 1.0]))
    array([-0.158808, 0, 0.841192], dtype=float32)
    """
    return _gelu_approx(x)


def mish(x: mx.array) -> mx.array:
    """Return `x * tanh(softplus(x))`, the value of `mlx.nn.mish`, for floating `x` of any shape.

    Reference: Misra, arXiv:1908.08681.

    >>> mish(mx.array([-1.0, 0.0, 1.0]))
    array([-0.303401, 0, 0.865098], dtype=float32)
    """
    return _mish(x)


def silu(x: mx.array) -> mx.array:
    """Return `x * sigmoid(x)`; the value is that of `mlx.nn.silu`.

    `x` is floating, of any shape. The gradient takes as long as MLX's, and keeps one array less.

    Reference: Elfwing et al., arXiv:1702.03118.

    >>> silu(mx.array([-1.0, 0.0, 1.0]))
    array([-0.268941, 0, 0.731059], dtype=float32)
    """
    return _silu(x)
