"""Logarithms, sums of exponentials and selections that stay finite and keep their digits."""

import mlx.core as mx

from purestep._core import sums

LOG_ZERO = -1e30
"""Stands for log(0). It is finite: its product with 0 is 0, and a logsumexp of such terms has a gradient."""


def shifted(logits: mx.array) -> tuple[mx.array, mx.array]:
    """Return logits minus their largest, and that largest [..., 1] without a gradient.

    A loss is a difference of two logits or of a logit and a logsumexp. At 1e4 float32 keeps three digits of
    such a difference; of shifted logits it keeps all.
    """
    largest = mx.stop_gradient(logits.max(axis=-1, keepdims=True))
    return logits - largest, largest


def log_softmax(logits: mx.array) -> mx.array:
    """Return the log-probabilities of the last axis; those near zero keep their digits."""
    logits, _ = shifted(logits)
    return logits - logsumexp(logits, keepdims=True)


def logsumexp(values: mx.array, *, keepdims: bool = False) -> mx.array:
    """Return the logsumexp of the last axis; empty batches, which `mx.logsumexp` refuses, stay empty."""
    if values.size == 0:
        return sums.total(values, -1, keepdims=keepdims)
    return mx.logsumexp(values, axis=-1, keepdims=keepdims)


def softplus(x: mx.array) -> mx.array:
    """Return `log(1 + exp(x))`, which equals `-log(sigmoid(-x))`."""
    return mx.logaddexp(x, 0.0)


def gather(values: mx.array, indices: mx.array) -> mx.array:
    """Return one entry of the last axis for each index: [..., classes] and [...] to [...]."""
    return mx.take_along_axis(values, indices[..., None], axis=-1).squeeze(-1)


def finite_where_zero(targets: mx.array, logs: mx.array) -> mx.array:
    """Return the logs, with 0 for each infinite log of a target of 0: their product would be NaN.

    Finite logs stay, even for a target of 0: they are the gradient with respect to that target.
    """
    return mx.where(mx.logical_and(targets == 0, mx.isinf(logs)), 0.0, logs)
