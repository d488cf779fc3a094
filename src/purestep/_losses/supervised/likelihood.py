"""Negative log-likelihoods of predicted log-probabilities, and of predicted means and variances."""

import math

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core import numerics, validity, weighting
from purestep._losses.core.inputs import classes, floating, pair, same_shape


def nll_loss(
    inputs: mx.array,
    targets: mx.array,
    *,
    weights: mx.array | None = None,
    ignore_index: int | None = None,
) -> Mean:
    """Return the negative log-probability of each target: `-input[target]`, in nats.

    `cross_entropy` computes the same from logits, which it normalizes.

    Args:
        inputs: floating [..., classes], log-probabilities.
        targets: integer [...], in [0, classes) or equal to `ignore_index`; any other value makes the loss
            and its gradient NaN.
        weights: [...] or a shape that broadcasts to it; targets of weight 0 are skipped.
        ignore_index: targets of this value are skipped; `None`: no target is.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if inputs are not floating or targets not integers.

    Differences from torch:

    - No target is ignored by default; torch ignores -100.

    >>> nll_loss(mx.log(mx.array([[0.5, 0.25, 0.25]])), mx.array([1])).value
    array(1.38629, dtype=float32)
    """
    caller = "nll_loss"
    if ignore_index is not None:
        ignore_index = checks.integer(caller, "ignore_index", ignore_index)
    logps, labels, valid, weights = classes(
        caller, inputs, targets, weights, ("inputs", "targets"), ignore_index
    )
    return weighting.mean(caller, -numerics.gather(logps, labels) * valid, weights)


def gaussian_nll_loss(
    predictions: mx.array,
    targets: mx.array,
    variances: mx.array,
    *,
    full: bool = False,
    eps: float = 1e-6,
    weights: mx.array | None = None,
) -> Mean:
    """Return the negative log-likelihood of targets under normal distributions, in nats.

        (log(v) + (prediction - target)^2 / v) / 2 + (log(2 pi) / 2 if full), with v = max(variance, eps)

    Args:
        predictions: floating [...], the means.
        targets: [...], of the same shape.
        variances: floating [...], of the same shape, at least 0. A variance below `eps` is replaced by
            `eps` and has no gradient; a negative one makes the loss NaN.
        full: add the constant term.
        eps: greater than 0, the smallest variance.
        weights: [...] or a shape that broadcasts to it; elements of weight 0 are skipped.

    Raises:
        ValueError: if the shapes do not fit, or eps is out of its range.
        TypeError: if predictions or variances are not floating.

    Reference: Nix and Weigend, 1994, doi:10.1109/ICNN.1994.374138.

    >>> gaussian_nll_loss(mx.array([1.0, 2.0]), mx.array([1.0, 0.0]), mx.array([1.0, 4.0])).total
    array(1.19315, dtype=float32)
    """
    caller = "gaussian_nll_loss"
    eps = checks.number(caller, "eps", eps, above=0)
    means, targets, weights = pair(caller, predictions, targets, weights)
    same_shape(caller, "variances", variances, "predictions", means)
    floating(caller, "variances", variances)
    variances = weighting.masked(weights, variances.astype(mx.float32), 1.0)
    valid = validity.nan_unless(variances >= 0)
    variances = mx.maximum(variances, eps)
    losses = 0.5 * (mx.log(variances) + mx.square(means - targets) / variances)
    if full:
        losses = losses + 0.5 * math.log(2 * math.pi)
    return weighting.mean(caller, losses * valid, weights)
