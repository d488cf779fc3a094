"""Logarithms, sums of exponentials and selections that stay finite and keep their digits."""

import functools

import mlx.core as mx

from purestep._core import sums
from purestep._layers import exponential

LOG_ZERO = -1e30
"""Stands for log(0). It is finite: its product with 0 is 0, and a logsumexp of such terms has a gradient."""


def shifted(logits: mx.array) -> tuple[mx.array, mx.array]:
    """Return logits minus their largest, and that largest [..., 1] without a gradient.

    A loss is a difference of two logits or of a logit and a logsumexp. At 1e4 float32 keeps three digits of
    such a difference; of shifted logits it keeps all.
    """
    largest = mx.stop_gradient(_largest(logits))
    return logits - largest, largest


def log_softmax(logits: mx.array) -> mx.array:
    """Return the log-probabilities of the last axis; those near zero keep their digits."""
    logits, _ = shifted(logits)
    return logits - normalizer(logits, keepdims=True)


def logsumexp(values: mx.array, *, keepdims: bool = False) -> mx.array:
    """Return the logsumexp of the last axis; empty batches, which `mx.logsumexp` refuses, stay empty."""
    if not exponential.serves(values):
        return _plain_logsumexp(values, keepdims)
    largest = mx.stop_gradient(_largest(values))
    found = normalizer(values - mx.where(mx.isinf(largest), 0.0, largest), keepdims=True) + largest
    return found if keepdims else found.squeeze(-1)


def normalizer(logits: mx.array, *, keepdims: bool = False) -> mx.array:
    """Return the logsumexp of the last axis of logits that are `shifted`: their largest is 0."""
    if not exponential.serves(logits):
        return _plain_logsumexp(logits, keepdims)
    rows = _in_parts(exponential.exp(logits))
    # Parts are added first: on a CPU, sums over the last axis of a long row take three times as long.
    return mx.log(sums.total(rows.sum(axis=-2) if rows.ndim > logits.ndim else rows, -1, keepdims=keepdims))


def _plain_logsumexp(values: mx.array, keepdims: bool) -> mx.array:
    if values.size == 0:
        return sums.total(values, -1, keepdims=keepdims)
    return mx.logsumexp(values, axis=-1, keepdims=keepdims)


def _largest(values: mx.array) -> mx.array:
    """Return the largest of the last axis, [..., 1]."""
    rows = _in_parts(values) if exponential.serves(values) else values
    return (rows.max(axis=-2) if rows.ndim > values.ndim else rows).max(axis=-1, keepdims=True)


def _in_parts(values: mx.array) -> mx.array:
    """Return [..., parts, length] for a last axis of parts * length, if its length has a good divisor."""
    parts = _parts(values.shape[-1])
    return values.reshape(*values.shape[:-1], parts, -1) if parts > 1 else values


@functools.cache
def _parts(length: int) -> int:
    """Return the largest divisor of a length that is at most 64 and an eighth of it; 1 if it is below 8."""
    divisor = next(each for each in range(max(1, min(64, length // 8)), 0, -1) if length % each == 0)
    return divisor if divisor >= 8 else 1


def softplus(x: mx.array) -> mx.array:
    """Return `log(1 + exp(x))`, which equals `-log(sigmoid(-x))`."""
    return mx.logaddexp(x, 0.0)


def gather(values: mx.array, indices: mx.array) -> mx.array:
    """Return one entry of the last axis for each index: [..., classes] and [...] to [...]."""
    return mx.take_along_axis(values, mx.expand_dims(indices, -1), axis=-1).squeeze(-1)


def finite_where_zero(targets: mx.array, logs: mx.array) -> mx.array:
    """Return the logs, with 0 for each infinite log of a target of 0: their product would be NaN.

    Finite logs stay, even for a target of 0: they are the gradient with respect to that target.
    """
    return mx.where(mx.logical_and(targets == 0, mx.isinf(logs)), 0.0, logs)
