"""MLX's fused cross entropy with what it lacks on a GPU: a gradient of its gradient."""

from typing import Any

import mlx.core as mx

from purestep._core import hardware, sums
from purestep._losses.core import reduce

Arrays = tuple[mx.array, ...]


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Return the negative log-likelihood of each target, in nats, with a gradient and a gradient of that.

    On a GPU there is no forward mode (`mx.jvp`), as MLX's own has none, and no shapeless compiling. On CUDA
    the gradient is made from the loss: of a target that costs 1000 nats it keeps four digits, and of one
    that costs infinitely many it is NaN.

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


_losses: Any = mx.custom_function(lambda logits, targets: mx.fast.cross_entropy(logits, targets))
_slope: Any = mx.custom_function(_fast_slope)


@_losses.vjp
def _losses_back(primals: Arrays, cotangent: mx.array, _: mx.array) -> Arrays:
    # Compiled, what this computes of the losses once more is found to be there.
    return _slope(*primals, cotangent), mx.zeros_like(primals[1])


@_slope.vjp
def _slope_back(primals: Arrays, cotangent: mx.array, _: mx.array) -> Arrays:
    # The slope is factors (p - e), with the probabilities p and the target's unit vector e. By hand: MLX does
    # not compile a gradient taken in here when the losses themselves are not asked for.
    logits, targets, factors = primals
    likely = mx.exp(reduce.log_softmax(logits.astype(mx.float32)))
    cotangent = cotangent.astype(mx.float32)
    expected = sums.total(likely * cotangent, -1, keepdims=True)
    of_logits = factors[..., None] * likely * (cotangent - expected)
    of_factors = expected.squeeze(-1) - reduce.chosen(cotangent, targets)
    return of_logits.astype(logits.dtype), mx.zeros_like(targets), of_factors.astype(factors.dtype)
