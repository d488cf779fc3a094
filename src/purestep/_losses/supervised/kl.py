"""Kullback-Leibler divergences between distributions over the last axis."""

import mlx.core as mx

from purestep._core import sums
from purestep._core.mean import Mean
from purestep._losses.core import inputs, weighting


def kl_divergence(
    log_predictions: mx.array, targets: mx.array, *, reverse: bool = False, weights: mx.array | None = None
) -> Mean:
    """Return `KL(targets || predictions)`, in nats, from log-predictions and target probabilities.

        forward     sum_c target_c (log(target_c) - log_prediction_c)
        reverse     sum_c prediction_c (log_prediction_c - log(target_c))

    A class adds nothing if the first distribution gives it 0, and infinity if only the second gives it 0.
    The forward direction makes predictions cover all likely targets. The reverse direction,
    `KL(predictions || targets)`, makes them concentrate on one mode of the targets.

    Args:
        log_predictions: floating [..., classes], log-probabilities: `log_softmax` of logits.
        targets: floating [..., classes], probabilities; a negative one makes the loss NaN. Rows need not
            sum to 1. The gradient with respect to a target of 0 is 0, as in torch, although the slope
            there is infinite.
        reverse: return the reverse direction.
        weights: [...] or a shape that broadcasts to it; rows of weight 0 are skipped.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if predictions or targets are not floating.

    Reference: Kullback and Leibler, 1951, doi:10.1214/aoms/1177729694.

    >>> kl_divergence(mx.log(mx.array([[0.5, 0.5]])), mx.array([[1.0, 0.0]])).value
    array(0.693147, dtype=float32)
    """
    caller = "kl_divergence"
    predictions, targets, weights = _rows(caller, log_predictions, "targets", targets, weights, 1.0)
    if reverse:
        # The gradient of log(0) is infinite, and zero times infinity is NaN: zeros never reach the log.
        logs = mx.where(targets != 0, mx.log(mx.where(targets != 0, targets, 1.0)), -mx.inf)
        losses = _expected(predictions, logs)
    else:
        losses = _forward(predictions, targets)
    return weighting.mean(caller, sums.total(losses, -1), weights)


def kl_divergence_with_log_targets(
    log_predictions: mx.array,
    log_targets: mx.array,
    *,
    reverse: bool = False,
    weights: mx.array | None = None,
) -> Mean:
    """Return `kl_divergence` from two log-probabilities, which do not underflow as probabilities do.

    Args:
        log_predictions: floating [..., classes], log-probabilities.
        log_targets: floating [..., classes], log-probabilities; -inf is a probability of 0.
        reverse: return the reverse direction, as in `kl_divergence`.
        weights: [...] or a shape that broadcasts to it; rows of weight 0 are skipped.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if predictions or targets are not floating.

    >>> log_targets = mx.array([[0.0, -float("inf")]])
    >>> kl_divergence_with_log_targets(mx.log(mx.array([[0.5, 0.5]])), log_targets).value
    array(0.693147, dtype=float32)
    """
    caller = "kl_divergence_with_log_targets"
    predictions, targets, weights = _rows(caller, log_predictions, "log_targets", log_targets, weights, 0.0)
    first, second = (predictions, targets) if reverse else (targets, predictions)
    return weighting.mean(caller, sums.total(_expected(first, second), -1), weights)


def generalized_kl_divergence(
    log_predictions: mx.array, targets: mx.array, *, weights: mx.array | None = None
) -> Mean:
    """Return a divergence of masses that need not sum to 1; it is zero only if they are equal.

        sum_c target_c (log(target_c) - log_prediction_c) + prediction_c - target_c

    Args:
        log_predictions: floating [..., classes], logarithms of masses.
        targets: floating [..., classes], masses of at least 0; a negative one makes the loss NaN. The
            gradient with respect to a mass of 0 is -1, although the slope there is infinite.
        weights: [...] or a shape that broadcasts to it; rows of weight 0 are skipped.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if predictions or targets are not floating.

    Reference: Csiszar, 1991, doi:10.1214/aos/1176348385.

    >>> generalized_kl_divergence(mx.zeros((1, 2)), mx.array([[1.0, 2.0]])).value
    array(0.386294, dtype=float32)
    """
    caller = "generalized_kl_divergence"
    predictions, targets, weights = _rows(caller, log_predictions, "targets", targets, weights, 1.0)
    losses = _forward(predictions, targets) + mx.exp(predictions) - targets
    return weighting.mean(caller, sums.total(losses, -1), weights)


def _rows(
    caller: str,
    log_predictions: mx.array,
    name: str,
    targets: mx.array,
    weights: mx.array | None,
    fill: float,
) -> tuple[mx.array, mx.array, mx.array | None]:
    inputs.floating(caller, "log_predictions", log_predictions)
    inputs.floating(caller, name, targets)
    return inputs.rows(caller, log_predictions, targets, weights, ("log_predictions", name), fill=fill)


def _forward(log_predictions: mx.array, targets: mx.array) -> mx.array:
    positive = targets != 0
    logs = mx.log(mx.where(positive, targets, 1.0))
    return mx.where(positive, targets * (logs - mx.where(positive, log_predictions, 0.0)), 0.0)


def _expected(first: mx.array, second: mx.array) -> mx.array:
    """Return `exp(first) (first - second)`, 0 where `exp(first)` is 0, with a gradient without NaN."""
    positive = mx.exp(first) != 0
    first, second = mx.where(positive, first, 0.0), mx.where(positive, second, 0.0)
    return mx.where(positive, mx.exp(first) * (first - second), 0.0)
