"""MLX's fused cross entropy with what it lacks on a GPU: a gradient of its gradient."""

from typing import Any

import mlx.core as mx

from purestep import hardware
from purestep.losses import reduce

Arrays = tuple[mx.array, ...]
Tangents = tuple[mx.array | None, ...]


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Return the negative log-likelihood of each target, in nats, differentiable as often as you like.

    On CUDA the gradient is made from the loss: of a target that costs 1000 nats it keeps four digits, and of
    one that costs infinitely many it is NaN.

    Args:
        logits: floating [..., classes].
        targets: integers [...], in range.

    Returns:
        float32 [...] on a GPU, whatever the dtype of the logits; in their dtype on a CPU.
    """
    # A CPU's is made of ordinary operations.
    return _losses(logits, targets) if hardware.on_gpu() else mx.fast.cross_entropy(logits, targets)


def _fast_slope(logits: mx.array, targets: mx.array, factors: mx.array) -> mx.array:
    return mx.vjp(lambda x: mx.fast.cross_entropy(x, targets), [logits], [factors])[1][0]


_losses: Any = mx.custom_function(mx.fast.cross_entropy)
_slope: Any = mx.custom_function(_fast_slope)


@_losses.vjp
def _losses_back(primals: Arrays, cotangent: mx.array, _: mx.array) -> Arrays:
    # Compiled, what this computes of the losses once more is found to be there.
    return _slope(*primals, cotangent), mx.zeros_like(primals[1])


@_losses.jvp
def _losses_forward(primals: Arrays, tangents: Tangents) -> mx.array:
    logits, targets = primals
    if tangents[0] is None:
        return mx.zeros(targets.shape)
    return (_slope(logits, targets, mx.ones(targets.shape)) * tangents[0]).sum(axis=-1)


@_slope.vjp
def _slope_back(primals: Arrays, cotangent: mx.array, _: mx.array) -> Arrays:
    logits, targets, factors = primals
    of_logits, of_factors = _curved(logits, targets, factors, cotangent)
    return of_logits, mx.zeros_like(targets), of_factors


@_slope.jvp
def _slope_forward(primals: Arrays, tangents: Tangents) -> mx.array:
    logits, targets, factors = primals
    of_logits, _, of_factors = tangents
    found = mx.zeros_like(logits)
    if of_logits is not None:
        found = found + _curved(logits, targets, factors, of_logits)[0]  # a Hessian is symmetric
    if of_factors is not None:
        found = found + _slope(logits, targets, of_factors)
    return found


def _curved(logits: mx.array, targets: mx.array, factors: mx.array, tangent: mx.array) -> list[mx.array]:
    """Return the gradient of `(_slope(logits, targets, factors) * tangent).sum()` in logits and factors."""

    def losses(logits: mx.array) -> mx.array:
        return -reduce.chosen(reduce.log_softmax(logits.astype(mx.float32)), targets)

    def slope(logits: mx.array, factors: mx.array) -> mx.array:
        return mx.vjp(losses, [logits], [factors])[1][0]

    return mx.vjp(slope, [logits, factors], [tangent])[1]
