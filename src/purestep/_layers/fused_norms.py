"""Norms on an NVIDIA GPU that can be differentiated twice."""

import functools
from typing import Any

import mlx.core as mx

from purestep._core.tracing.custom import custom_function
from purestep._layers import norm_kernels
from purestep._layers.norm_kernels import Norm

_rms_norm, _layer_norm = mx.fast.rms_norm, mx.fast.layer_norm


def fused_norm(norm: Norm, x: mx.array, *present: mx.array) -> mx.array | None:
    """Return the norm of `x` with the weight and the bias that are present; `None` if no kernel serves."""
    return _forward(norm)(x, *present) if norm_kernels.serves(x, *present) else None


def _plain(norm: Norm, x: mx.array, *present: mx.array) -> mx.array:
    weight = present[0] if norm.weight else None
    if not norm.centered:
        return _rms_norm(x, weight, norm.eps)
    return _layer_norm(x, weight, present[-1] if norm.bias else None, norm.eps)


def _plain_back(norm: Norm, slope: mx.array, *arrays: mx.array) -> list[mx.array]:
    return mx.vjp(functools.partial(_plain, norm), list(arrays), [slope])[1]


@functools.cache
def _forward(norm: Norm) -> Any:
    function: Any = custom_function(functools.partial(norm_kernels.forward, norm))

    @function.vjp
    def _(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        arrays = (primals,) if isinstance(primals, mx.array) else primals
        return tuple(_backward(norm)(cotangent, *arrays))

    return function


@functools.cache
def _backward(norm: Norm) -> Any:
    function: Any = custom_function(functools.partial(norm_kernels.backward, norm))

    @function.vjp
    def _(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return tuple(mx.vjp(functools.partial(_plain_back, norm), list(primals), list(cotangents))[1])

    return function
