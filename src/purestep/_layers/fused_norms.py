"""Norms on an NVIDIA GPU that can be differentiated twice."""

import functools
from typing import Any

import mlx.core as mx

from purestep._core.tracing.custom import custom_function, gradient_function
from purestep._layers.kernels import norms
from purestep._layers.kernels.norms import Norm

_rms_norm, _layer_norm = mx.fast.rms_norm, mx.fast.layer_norm


def fused_norm(norm: Norm, x: mx.array, *present: mx.array) -> mx.array | None:
    """Return the norm of `x` with the weight and the bias that are present; `None` if no kernel serves."""
    return _forward(norm)(x, *present)[0] if norms.serves(x, *present) else None


def _plain_back(norm: Norm, slope: mx.array, x: mx.array, *present: mx.array) -> list[mx.array]:
    def plain(x: mx.array, *present: mx.array) -> mx.array:
        weight = present[0] if norm.weight else None
        if not norm.centered:
            return _rms_norm(x, weight, norm.eps)
        return _layer_norm(x, weight, present[-1] if norm.bias else None, norm.eps)

    return mx.vjp(plain, [x, *present], [slope])[1]


@functools.cache
def _forward(norm: Norm) -> Any:
    function: Any = custom_function(functools.partial(norms.forward, norm))

    @function.vjp
    def _(primals: Any, cotangents: Any, outputs: Any) -> Any:
        arrays = (primals,) if isinstance(primals, mx.array) else primals
        return tuple(_backward(norm)(cotangents[0], outputs[1], *arrays))

    return function


@functools.cache
def _backward(norm: Norm) -> Any:
    function: Any = gradient_function(functools.partial(norms.backward, norm))

    @function.vjp
    def _(primals: Any, cotangents: Any, outputs: Any) -> Any:
        slope, stats, *arrays = primals
        given = [cotangents] if isinstance(cotangents, mx.array) else list(cotangents)
        plain = functools.partial(_plain_back, norm)
        of_slope, *of_arrays = mx.vjp(plain, [slope, *arrays], given)[1]
        # The statistics are a function of `x`, and the plain formula computes them from it.
        return of_slope, mx.zeros_like(stats), *of_arrays

    return function
