"""Fenchel-Young losses: the general constructor and the two sparsemax losses."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import checks, sums
from purestep._core.mean import Mean
from purestep._losses.core import inputs, numerics, validity, weighting

_ROUNDING = 1e-4  # rounding error of a distribution's sum; times a large score it would add noise to the loss


def sparsemax_loss(logits: mx.array, labels: mx.array, *, weights: mx.array | None = None) -> Mean:
    """Return a loss of binary labels that is exactly zero beyond a margin of 1.

    With `x = -logit` for a label of 1 and `x = logit` for 0:

        0 where x <= -1;  x where x >= 1;  (x + 1)^2 / 4 between

    Args:
        logits: floating [...].
        labels: [...], each 0 or 1; any other value makes the loss and its gradient NaN.
        weights: [...] or a shape that broadcasts to it; labels of weight 0 are skipped.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the logits are not floating.

    Reference: Blondel et al., arXiv:1901.02324, table 1.

    >>> sparsemax_loss(mx.array([0.0, 3.0, -3.0]), mx.array([1, 1, 1])).total
    array(3.25, dtype=float32)
    """
    caller = "sparsemax_loss"
    logits, labels, weights = inputs.pair(caller, logits, labels, weights, ("logits", "labels"))
    valid = validity.nan_unless(mx.logical_or(labels == 0, labels == 1))
    x = (1 - 2 * labels) * logits
    near = mx.clip(x, -1, 1)
    return weighting.mean(caller, (mx.square(near + 1) / 4 + mx.maximum(x - 1, 0)) * valid, weights)


def multiclass_sparsemax_loss(scores: mx.array, labels: mx.array, *, weights: mx.array | None = None) -> Mean:
    """Return the loss whose gradient is `sparsemax(scores) - one_hot(label)`.

    Sparsemax is the distribution nearest to the scores, `p = max(score - t, 0)`, where the threshold `t`
    makes `p` sum to 1. The loss is

        (1 + sum over p_c > 0 of (score_c^2 - t^2)) / 2 - score_label

    It is zero if the score of the label exceeds every other score by at least 1.

    Args and Raises: as `multiclass_hinge_loss`.

    Reference: Martins and Astudillo, arXiv:1602.02068.

    >>> multiclass_sparsemax_loss(mx.array([[0.5, 0.0, -9.0]]), mx.array([0])).value
    array(0.0625, dtype=float32)
    """
    caller = "multiclass_sparsemax_loss"
    scores, labels, valid, weights = inputs.classes(caller, scores, labels, weights, ("scores", "labels"))
    scores, _ = numerics.shifted(scores)
    support, threshold = _simplex(scores)
    # No digits are lost: the shifted scores of the support and their threshold lie between -1 and 0.
    squares = mx.where(support, mx.square(mx.where(support, scores, 0.0)) - mx.square(threshold), 0.0)
    losses = 0.5 * (1 + sums.total(squares, -1)) - numerics.gather(scores, labels)
    return weighting.mean(caller, losses * valid, weights)


def make_fenchel_young_loss(max_fun: Callable[..., mx.array]) -> Callable[..., Mean]:
    """Build the Fenchel-Young loss of a maximum function: `max_fun(scores) - sum_c target_c score_c`.

    `max_fun` should be the maximum over distributions `p` of `sum_c p_c score_c` minus a convex regularizer
    of `p`. The gradient of the loss is then the maximizing `p` minus the target. `mx.logsumexp`, whose
    regularizer is negative entropy, gives cross entropy; `mx.max` gives the perceptron loss.

    Args:
        max_fun: `max_fun(scores [classes], *args, **kwargs) -> 0-d array`, mapped over the leading axes.

    Returns:
        `loss(scores, targets, *args, weights=None, **kwargs) -> Mean` for scores floating [..., classes],
        targets of the same shape, and weights [...]. It raises a TypeError if the scores are not floating,
        and a ValueError if the shapes do not fit.

    Raises:
        TypeError: if `max_fun` is not callable.

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
        names = ("scores", "targets")
        scores, targets, weights = inputs.rows(caller, scores, targets, weights, names)
        if scores.size == 0:  # max_fun may fail on an empty array
            return weighting.mean(caller, sums.total(scores, -1), weights)
        # Both terms change by the largest score if the targets sum to 1. Other targets need a correction.
        scores, largest = numerics.shifted(scores)
        rows = scores.reshape(-1, scores.shape[-1])
        maxima = mx.vmap(lambda row: max_fun(row, *args, **kwargs))(rows).reshape(scores.shape[:-1])
        losses = maxima - sums.total(targets * numerics.finite_where_zero(targets, scores), -1)
        rest = 1 - sums.total(targets, -1)
        losses = losses + mx.where(mx.abs(rest) > _ROUNDING, rest * largest.squeeze(-1), 0.0)
        return weighting.mean(caller, losses, weights)

    return fenchel_young_loss


def _simplex(scores: mx.array) -> tuple[mx.array, mx.array]:
    """Return the classes where `max(score - t, 0)` is positive, and the `t` that makes it sum to 1."""
    ordered = -mx.sort(-mx.stop_gradient(scores), axis=-1)
    so_far = mx.cumsum(ordered, axis=-1)
    ranks = mx.arange(1, scores.shape[-1] + 1, dtype=mx.float32)
    inside = (ranks * ordered > so_far - 1).astype(mx.float32)
    size = sums.total(inside, -1, keepdims=True)
    threshold = (sums.total(ordered * inside, -1, keepdims=True) - 1) / size
    # The set of classes is piecewise constant, so it needs no gradient; `t` is linear in their scores.
    support = mx.stop_gradient(scores) > threshold
    exact = (sums.total(mx.where(support, scores, 0.0), -1, keepdims=True) - 1) / size
    return support, exact
