"""Negative log-likelihoods of what a model has made explicit: log-probabilities, or means and variances."""

import math

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core import reduce


def nll_loss(
    inputs: mx.array,
    targets: mx.array,
    *,
    weights: mx.array | None = None,
    ignore_index: int | None = None,
) -> Mean:
    """Return the negative of the log-probability that each target names: `-input[target]`, in nats.

    From logits, `cross_entropy` does the same and normalizes them.

    Args:
        inputs: floating [..., classes], log-probabilities.
        targets: integer [...], in [0, classes) or equal to `ignore_index`; any other makes the loss and
            its gradient NaN.
        weights: [...] or a shape that broadcasts to it: what each target counts; zero leaves it out.
        ignore_index: targets of this value are left out; none is by default (torch leaves out -100).

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if inputs are not floating or targets not integers.

    >>> nll_loss(mx.log(mx.array([[0.5, 0.25, 0.25]])), mx.array([1])).value
    array(1.38629, dtype=float32)
    """
    caller = "nll_loss"
    names = ("inputs", "targets")
    if ignore_index is not None:
        ignore_index = checks.integer(caller, "ignore_index", ignore_index)
        reduce.labelled(caller, inputs, targets, names)
        reduce.integers(caller, "targets", targets)
        weights = reduce.counts(caller, weights, targets.shape, "targets'")
        weights = reduce.ignoring(ignore_index, reduce.signed(targets), weights)
    inputs, labels, valid, weights = reduce.classes(caller, inputs, targets, weights, names)
    return reduce.weighted(caller, -reduce.chosen(inputs, labels) * valid, weights)


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

    A variance below `eps` is counted as `eps` and has no gradient; a negative one makes the loss NaN.

    Args:
        predictions: floating [...], the means.
        targets: [...], of the same shape.
        variances: floating [...], of the same shape, at least 0.
        full: add the constant.
        eps: greater than 0, the least variance.
        weights: [...] or a shape that broadcasts to it: what each element counts; zero leaves it out.

    Raises:
        ValueError: if the shapes do not fit, or eps is out of its range.
        TypeError: if predictions or variances are not floating.

    Reference: Nix and Weigend, 1994, doi:10.1109/ICNN.1994.374138.

    >>> gaussian_nll_loss(mx.array([1.0, 2.0]), mx.array([1.0, 0.0]), mx.array([1.0, 4.0])).total
    array(1.19315, dtype=float32)
    """
    caller = "gaussian_nll_loss"
    eps = checks.number(caller, "eps", eps, above=0)
    predictions, targets, counts = reduce.pair(caller, predictions, targets, weights)
    reduce.same_shape(caller, "variances", variances, "predictions", predictions)
    reduce.floating(caller, "variances", variances)
    variances = reduce.keep(counts, variances.astype(mx.float32), 1.0)
    valid = mx.where(variances >= 0, 1.0, mx.nan)
    variances = mx.maximum(variances, eps)
    losses = 0.5 * (mx.log(variances) + mx.square(predictions - targets) / variances)
    if full:
        losses = losses + 0.5 * math.log(2 * math.pi)
    return reduce.weighted(caller, losses * valid, counts)
