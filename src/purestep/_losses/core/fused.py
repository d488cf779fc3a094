"""MLX's fused cross entropy, extended by a second derivative on a GPU."""

from typing import Any

import mlx.core as mx

from purestep._core import hardware, sums
from purestep._core.tracing.custom import custom_function
from purestep._losses.core import numerics

Arrays = tuple[mx.array, ...]


def fused_cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Return the negative log-likelihood of each target, in nats; it can be differentiated twice.

    On a GPU, `mx.jvp` and shapeless compilation do not work, as in MLX's own operation. CUDA computes the
    gradient from the loss: at a loss of 1000 nats the gradient keeps four digits, and at an infinite loss
    it is NaN.

    Args:
        logits: floating [..., classes].
        targets: integer [...], in range.

    Returns:
        float32 [...] on a GPU, for any dtype of the logits; in the dtype of the logits on a CPU.
    """
    # On a CPU the loss consists of ordinary operations, which can be differentiated any number of times.
    if hardware.on_gpu():
        return _losses(logits, targets)
    return numerics.logsumexp(logits) - numerics.gather(logits, targets)


def _fast_slope(logits: mx.array, targets: mx.array, factors: mx.array) -> mx.array:
    return mx.vjp(lambda x: mx.fast.cross_entropy(x, targets), [logits], [factors])[1][0]


_losses: Any = custom_function(lambda logits, targets: mx.fast.cross_entropy(logits, targets))
_slope: Any = custom_function(_fast_slope)


@_losses.vjp
def _losses_back(primals: Arrays, cotangent: mx.array, _: mx.array) -> Arrays:
    # The slope computes the losses again; mx.compile merges the two computations.
    return _slope(*primals, cotangent), mx.zeros_like(primals[1])


@_slope.vjp
def _slope_back(primals: Arrays, cotangent: mx.array, _: mx.array) -> Arrays:
    # The slope is factors (p - e), with probabilities p and the target's unit vector e. Its gradient is
    # written out because MLX fails to compile an automatic one when the losses themselves are not a result.
    logits, targets, factors = primals
    p = mx.exp(numerics.log_softmax(logits.astype(mx.float32)))
    cotangent = cotangent.astype(mx.float32)
    expected = sums.total(p * cotangent, -1, keepdims=True)
    of_logits = factors[..., None] * p * (cotangent - expected)
    of_factors = expected.squeeze(-1) - numerics.gather(cotangent, targets)
    return of_logits.astype(logits.dtype), mx.zeros_like(targets), of_factors.astype(factors.dtype)
