"""Kullback-Leibler divergences between distributions over the last axis."""

import mlx.core as mx

from purestep._core import checks, sums
from purestep._core.mean import Mean
from purestep._losses.core import reduce


def kl_divergence(
    log_predictions: mx.array, targets: mx.array, *, reverse: bool = False, weights: mx.array | None = None
) -> Mean:
    """Return `KL(targets || predictions)`, in nats, from log-predictions and target probabilities.

        forward     sum_c target_c (log(target_c) - log_prediction_c)
        reverse     sum_c prediction_c (log_prediction_c - log(target_c))

    A class that the first distribution gives 0 costs nothing; one that only the second gives 0 costs
    infinity. The forward direction covers all that the targets hold likely; the reverse, `KL(predictions ||
    targets)`, seeks one of their modes.

    Args:
        log_predictions: floating [..., classes], log-probabilities: `log_softmax` of logits.
        targets: floating [..., classes], probabilities; a negative one makes the loss NaN. Of the term of
            a target of 0, whose slope is infinite, the gradient with respect to the target is given as 0,
            as torch does. Rows need not sum to 1.
        reverse: take the divergence of the predictions from the targets instead.
        weights: [...] or a shape that broadcasts to it: what each row counts; zero leaves it out.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if either is not floating.

    Reference: Kullback and Leibler, 1951, doi:10.1214/aoms/1177729694.

    >>> kl_divergence(mx.log(mx.array([[0.5, 0.5]])), mx.array([[1.0, 0.0]])).value
    array(0.693147, dtype=float32)
    """
    caller = "kl_divergence"
    predictions, targets, weights = _rows(caller, log_predictions, "targets", targets, weights, 1.0)
    if reverse:
        # The gradient of log at zero is infinite, and times zero NaN: so zeros never reach it.
        logs = mx.where(targets != 0, mx.log(mx.where(targets != 0, targets, 1.0)), -mx.inf)
        losses = _expected(predictions, logs)
    else:
        losses = _forward(predictions, targets)
    return reduce.weighted(caller, sums.total(losses, -1), weights)


def kl_divergence_with_log_targets(
    log_predictions: mx.array,
    log_targets: mx.array,
    *,
    reverse: bool = False,
    weights: mx.array | None = None,
) -> Mean:
    """Return `kl_divergence` from the logarithms of both, which hold what a probability underflows to.

    Args:
        log_predictions: floating [..., classes], log-probabilities.
        log_targets: floating [..., classes], log-probabilities; -inf is a probability of 0.
        reverse: take the divergence of the predictions from the targets instead.
        weights: [...] or a shape that broadcasts to it: what each row counts; zero leaves it out.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if either is not floating.

    >>> log_targets = mx.array([[0.0, -float("inf")]])
    >>> kl_divergence_with_log_targets(mx.log(mx.array([[0.5, 0.5]])), log_targets).value
    array(0.693147, dtype=float32)
    """
    caller = "kl_divergence_with_log_targets"
    rows = _rows(caller, log_predictions, "log_targets", log_targets, weights, 0.0)
    predictions, targets, weights = rows
    first, second = (predictions, targets) if reverse else (targets, predictions)
    return reduce.weighted(caller, sums.total(_expected(first, second), -1), weights)


def generalized_kl_divergence(
    log_predictions: mx.array, targets: mx.array, *, weights: mx.array | None = None
) -> Mean:
    """Return the divergence of masses that need not sum to 1, which is zero only where they are equal.

        sum_c target_c (log(target_c) - log_prediction_c) + prediction_c - target_c

    Args:
        log_predictions: floating [..., classes], logarithms of masses.
        targets: floating [..., classes], masses of at least 0; a negative one makes the loss NaN. The
            slope at a mass of 0, which is infinite, is given as -1.
        weights: [...] or a shape that broadcasts to it: what each row counts; zero leaves it out.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if either is not floating.

    Reference: Csiszar, 1991, doi:10.1214/aos/1176348385.

    >>> generalized_kl_divergence(mx.zeros((1, 2)), mx.array([[1.0, 2.0]])).value
    array(0.386294, dtype=float32)
    """
    caller = "generalized_kl_divergence"
    predictions, targets, weights = _rows(caller, log_predictions, "targets", targets, weights, 1.0)
    losses = _forward(predictions, targets) + mx.exp(predictions) - targets
    return reduce.weighted(caller, sums.total(losses, -1), weights)


def _rows(
    caller: str,
    log_predictions: mx.array,
    name: str,
    targets: mx.array,
    weights: mx.array | None,
    instead: float,
) -> tuple[mx.array, mx.array, mx.array | None]:
    """Return both in float32, harmless where they do not count, and what each row weighs."""
    reduce.floating(caller, "log_predictions", log_predictions)
    reduce.floating(caller, name, targets)
    reduce.same_shape(caller, name, targets, "log_predictions", log_predictions)
    if log_predictions.ndim == 0 or log_predictions.shape[-1] == 0:
        raise checks.error(
            caller, f"log_predictions must have at least one class, got {log_predictions.shape}"
        )
    weights = reduce.counts(caller, weights, log_predictions.shape[:-1])
    predictions = reduce.keep(weights, log_predictions.astype(mx.float32))
    return predictions, reduce.keep(weights, targets.astype(mx.float32), instead), weights


def _forward(log_predictions: mx.array, targets: mx.array) -> mx.array:
    positive = targets != 0
    logs = mx.log(mx.where(positive, targets, 1.0))
    return mx.where(positive, targets * (logs - mx.where(positive, log_predictions, 0.0)), 0.0)


def _expected(first: mx.array, second: mx.array) -> mx.array:
    """Return `exp(first) (first - second)`, zero where that exponential is, with a gradient free of NaN."""
    positive = mx.exp(first) != 0
    first, second = mx.where(positive, first, 0.0), mx.where(positive, second, 0.0)
    return mx.where(positive, mx.exp(first) * (first - second), 0.0)
