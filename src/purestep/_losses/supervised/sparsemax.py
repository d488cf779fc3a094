"""Sparsemax losses, and the Fenchel-Young losses that they are two of."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import checks, sums
from purestep._core.mean import Mean
from purestep._losses.core import reduce

_ROUNDING = 1e-4  # how far from 1 the sum of a distribution may be: times a large score, that would be noise


def sparsemax_loss(logits: mx.array, labels: mx.array, *, weights: mx.array | None = None) -> Mean:
    """Return the loss of yes-or-no labels that is exactly zero beyond a margin of 1.

    With `x = -logit` for a label of 1 and `x = logit` for 0:

        0 where x <= -1;  x where x >= 1;  (x + 1)^2 / 4 between

    Args:
        logits: floating [...].
        labels: [...], each 0 or 1; any other makes the loss and its gradient NaN.
        weights: [...] or a shape that broadcasts to it: what each label counts; zero leaves it out.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the logits are not floating.

    Reference: Blondel et al., arXiv:1901.02324, table 1.

    >>> sparsemax_loss(mx.array([0.0, 3.0, -3.0]), mx.array([1, 1, 1])).total
    array(3.25, dtype=float32)
    """
    caller = "sparsemax_loss"
    reduce.floating(caller, "logits", logits)
    reduce.same_shape(caller, "labels", labels, "logits", logits)
    weights = reduce.counts(caller, weights, logits.shape)
    logits, labels = (reduce.keep(weights, values.astype(mx.float32)) for values in (logits, labels))
    valid = mx.where(mx.logical_or(labels == 0, labels == 1), 1.0, mx.nan)
    x = (1 - 2 * labels) * logits
    near = mx.clip(x, -1, 1)
    return reduce.weighted(caller, (mx.square(near + 1) / 4 + mx.maximum(x - 1, 0)) * valid, weights)


def multiclass_sparsemax_loss(scores: mx.array, labels: mx.array, *, weights: mx.array | None = None) -> Mean:
    """Return the loss whose gradient is `sparsemax(scores) - one_hot(label)`.

    With `p = max(score - t, 0)`, where `t` makes it sum to 1, the nearest point of the probability simplex:

        (1 + sum over p_c > 0 of (score_c^2 - t^2)) / 2 - score_label

    It is zero once the label leads every other class by 1.

    Args:
        scores: floating [..., classes].
        labels: integer [...], in [0, classes); any other makes the loss and its gradient NaN.
        weights: [...] or a shape that broadcasts to it: what each label counts; zero leaves it out.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if scores are not floating or labels not integers.

    Reference: Martins and Astudillo, arXiv:1602.02068.

    >>> multiclass_sparsemax_loss(mx.array([[0.5, 0.0, -9.0]]), mx.array([0])).value
    array(0.0625, dtype=float32)
    """
    caller = "multiclass_sparsemax_loss"
    scores, labels, valid, weights = reduce.classes(caller, scores, labels, weights, ("scores", "labels"))
    scores = scores - mx.stop_gradient(scores.max(axis=-1, keepdims=True))
    support, threshold = _simplex(scores)
    # Of numbers between -1 and 0: the scores of the support, less the largest, and their threshold.
    squares = mx.where(support, mx.square(mx.where(support, scores, 0.0)) - mx.square(threshold), 0.0)
    losses = 0.5 * (1 + sums.total(squares, -1)) - reduce.chosen(scores, labels)
    return reduce.weighted(caller, losses * valid, weights)


def make_fenchel_young_loss(max_fun: Callable[..., mx.array]) -> Callable[..., Mean]:
    """Return the loss that a maximum over distributions makes: `max_fun(scores) - sum_c target_c score_c`.

    Where `max_fun` is the maximum of `sum_c p_c score_c` less a convex regularizer of `p`, the gradient is
    the `p` that attains it, less the target. `mx.logsumexp` (the regularizer is negative entropy) makes
    cross entropy, `mx.max` the perceptron loss.

    Args:
        max_fun: `max_fun(scores [classes], *args, **kwargs) -> 0-d array`, mapped over the leading axes.

    Returns:
        `loss(scores, targets, *args, weights=None, **kwargs) -> Mean`, of scores floating [..., classes],
        targets of that shape, and weights [...].

    Raises:
        TypeError: if `max_fun` cannot be called; by the loss, if scores are not floating.
        ValueError: by the loss, if the shapes do not fit.

    Reference: Blondel et al., arXiv:1901.02324.

    >>> loss = make_fenchel_young_loss(mx.logsumexp)
    >>> loss(mx.zeros((2, 4)), mx.eye(4)[:2]).value
    array(1.38629, dtype=float32)
    """
    checks.function("make_fenchel_young_loss", "max_fun", max_fun)
    caller = "fenchel_young_loss"

    def fenchel_young_loss(
        scores: mx.array, targets: mx.array, *args: Any, weights: mx.array | None = None, **kwargs: Any
    ) -> Mean:
        reduce.floating(caller, "scores", scores)
        reduce.same_shape(caller, "targets", targets, "scores", scores)
        if scores.ndim == 0 or scores.shape[-1] == 0:
            raise checks.error(caller, f"scores must have at least one class, got {scores.shape}")
        weights = reduce.counts(caller, weights, scores.shape[:-1])
        if scores.size == 0:  # which max_fun need not bear
            return reduce.weighted(caller, sums.total(scores, -1), weights)
        scores, targets = (reduce.keep(weights, values.astype(mx.float32)) for values in (scores, targets))
        # Less their largest, by which both terms change alike where a target sums to 1: the rest is added.
        largest = mx.stop_gradient(scores.max(axis=-1, keepdims=True))
        rows = (scores - largest).reshape(-1, scores.shape[-1])
        maxima = mx.vmap(lambda row: max_fun(row, *args, **kwargs))(rows).reshape(scores.shape[:-1])
        losses = maxima - sums.total(targets * reduce.spared(targets, scores - largest), -1)
        rest = 1 - sums.total(targets, -1)
        losses = losses + mx.where(mx.abs(rest) > _ROUNDING, rest * largest.squeeze(-1), 0.0)
        return reduce.weighted(caller, losses, weights)

    return fenchel_young_loss


def _simplex(scores: mx.array) -> tuple[mx.array, mx.array]:
    """Return where `max(score - t, 0)` is positive, and `t`, for the `t` with which that sums to 1."""
    ordered = -mx.sort(-mx.stop_gradient(scores), axis=-1)
    so_far = mx.cumsum(ordered, axis=-1)
    ranks = mx.arange(1, scores.shape[-1] + 1, dtype=mx.float32)
    inside = (ranks * ordered > so_far - 1).astype(mx.float32)
    size = sums.total(inside, -1, keepdims=True)
    threshold = (sums.total(ordered * inside, -1, keepdims=True) - 1) / size
    # Which classes are inside is piecewise constant; given that, `t` is linear in the scores.
    support = mx.stop_gradient(scores) > threshold
    exact = (sums.total(mx.where(support, scores, 0.0), -1, keepdims=True) - 1) / size
    return support, exact
