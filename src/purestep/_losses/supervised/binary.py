"""Losses of yes-or-no labels: binary cross entropy, from logits or probabilities, and the focal loss."""

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core import reduce

_SMALLEST = 2.0**-126  # of the normal float32 numbers


def sigmoid_binary_cross_entropy(
    logits: mx.array,
    labels: mx.array,
    *,
    weights: mx.array | None = None,
    pos_weight: float | mx.array = 1.0,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Mean:
    """Return the negative log-likelihood of labels under `sigmoid(logits)`, in nats.

    With `softplus(x) = log(1 + exp(x))`, label `y`, weight of the positives `w` and z-loss `z`:

        w y softplus(-logit) + (1 - y) softplus(logit) + z softplus(logit)^2

    computed in float32, with no overflow at large logits. Several classes at once, each with a label of
    its own, are one more axis.

    Args:
        logits: floating [...].
        labels: [...], booleans or numbers in [0, 1]; any other makes the loss and its gradient NaN.
        weights: [...] or a shape that broadcasts to it: what each label counts; zero leaves it out.
        pos_weight: at least 0, or an array that broadcasts to [...], such as one for each class: how much
            more a positive costs. The mean is over the labels all the same.
        ignore_index: labels of this value are left out.
        label_smoothing: in [0, 1): labels move this share of the way to one half.
        z_loss: at least 0, the cost of log(1 + exp(logit))^2, which is `cross_entropy`'s of two classes
            with the logits 0 and `logit`.

    Raises:
        ValueError: if the shapes do not fit, or an option is out of its range.
        TypeError: if the logits are not floating.

    >>> sigmoid_binary_cross_entropy(mx.array([0.0, 100.0]), mx.array([1, 1]))
    Mean(total=array(0.693147, dtype=float32), weight=array(2, dtype=float32))
    """
    caller = "sigmoid_binary_cross_entropy"
    label_smoothing = checks.number(caller, "label_smoothing", label_smoothing, least=0, below=1)
    z_loss = checks.number(caller, "z_loss", z_loss, least=0)
    logits, labels, weights = _labelled(caller, logits, labels, weights, ignore_index)
    valid = reduce.between(labels)
    if label_smoothing:
        labels = (1 - label_smoothing) * labels + label_smoothing / 2
    positive = labels * _factor(caller, pos_weight, logits)
    losses = positive * _softplus(-logits) + (1 - labels) * _softplus(logits)
    if z_loss:
        losses = losses + z_loss * mx.square(_softplus(logits))
    return reduce.weighted(caller, losses * valid, weights)


def binary_cross_entropy(
    probabilities: mx.array, labels: mx.array, *, weights: mx.array | None = None
) -> Mean:
    """Return the negative log-likelihood of labels under probabilities, in nats.

        -y max(log(p), -100) - (1 - y) max(log(1 - p), -100)

    Where there are logits, `sigmoid_binary_cross_entropy` keeps the digits that a probability near 1 lost.

    Args:
        probabilities: floating [...], in [0, 1]; any other makes the loss and its gradient NaN.
        labels: [...], booleans or numbers in [0, 1]; any other does so too.
        weights: [...] or a shape that broadcasts to it: what each label counts; zero leaves it out.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the probabilities are not floating.

    >>> binary_cross_entropy(mx.array([0.5, 0.0]), mx.array([1, 1])).total
    array(100.693, dtype=float32)
    """
    caller = "binary_cross_entropy"
    reduce.floating(caller, "probabilities", probabilities)
    reduce.same_shape(caller, "labels", labels, "probabilities", probabilities)
    weights = reduce.counts(caller, weights, probabilities.shape)
    probabilities = reduce.keep(weights, probabilities.astype(mx.float32), 0.5)
    labels = reduce.keep(weights, labels.astype(mx.float32))
    losses = -labels * _log(probabilities) - (1 - labels) * _log(1 - probabilities)
    return reduce.weighted(caller, losses * reduce.between(labels) * reduce.between(probabilities), weights)


def sigmoid_focal_loss(
    logits: mx.array,
    labels: mx.array,
    *,
    alpha: float | None = None,
    gamma: float = 2.0,
    weights: mx.array | None = None,
) -> Mean:
    """Return binary cross entropy that counts less the surer the prediction is already.

    With `p = sigmoid(logit)`, label `y` and `q = y (1 - p) + (1 - y) p`, the probability of being wrong:

        q^gamma * (-y log(p) - (1 - y) log(1 - p)) * (alpha y + (1 - alpha) (1 - y))

    the last factor only where `alpha` is given; computed in float32 from the logits.

    Args:
        logits: floating [...].
        labels: [...], booleans or numbers in [0, 1]; any other makes the loss and its gradient NaN.
        alpha: in [0, 1], what positives count, against `1 - alpha` for negatives.
        gamma: at least 0, how much less the easy ones count; 0 is binary cross entropy.
        weights: [...] or a shape that broadcasts to it: what each label counts; zero leaves it out.

    Raises:
        ValueError: if the shapes do not fit, or an option is out of its range.
        TypeError: if the logits are not floating.

    Reference: Lin et al., arXiv:1708.02002.

    >>> sigmoid_focal_loss(mx.array([0.0, 5.0]), mx.array([1, 1])).total
    array(0.173287, dtype=float32)
    """
    caller = "sigmoid_focal_loss"
    gamma = checks.number(caller, "gamma", gamma, least=0)
    if alpha is not None:
        alpha = checks.number(caller, "alpha", alpha, least=0, most=1)
    logits, labels, weights = _labelled(caller, logits, labels, weights, None)
    wrong, right = _softplus(-logits), _softplus(logits)
    losses = labels * wrong + (1 - labels) * right
    # log(q): of a hard label one of the two terms is log(0), whose gradient must be zero and not NaN.
    soft = mx.logical_and(labels > 0, labels < 1)
    inner = mx.where(soft, labels, 0.5)
    mixed = mx.logaddexp(mx.log(inner) - right, mx.log(1 - inner) - wrong)
    log_q = mx.where(soft, mixed, mx.where(labels > 0.5, -right, -wrong) + _slope(labels, logits))
    losses = losses * mx.exp(gamma * log_q)
    if alpha is not None:
        losses = losses * (alpha * labels + (1 - alpha) * (1 - labels))
    return reduce.weighted(caller, losses * reduce.between(labels), weights)


def _softplus(x: mx.array) -> mx.array:
    return mx.logaddexp(x, 0.0)


def _slope(labels: mx.array, logits: mx.array) -> mx.array:
    """Return zero, with the gradient that log(q) has with respect to a label of 0 or of 1, `(1 - 2p) / q`."""
    slope = mx.where(labels > 0.5, 1 - mx.exp(mx.minimum(logits, 80)), mx.exp(mx.minimum(-logits, 80)) - 1)
    return (labels - mx.stop_gradient(labels)) * mx.stop_gradient(slope)


def _log(x: mx.array) -> mx.array:
    """Return `max(log(x), -100)`, with a gradient of zero where that is -100."""
    return mx.where(x < _SMALLEST, -100.0, mx.log(mx.maximum(x, _SMALLEST)))


def _factor(caller: str, pos_weight: float | mx.array, logits: mx.array) -> mx.array | float:
    if isinstance(pos_weight, mx.array):
        weights = reduce.counts(caller, pos_weight, logits.shape, "the logits'", "pos_weight")
        assert weights is not None
        return weights
    return checks.number(caller, "pos_weight", pos_weight, least=0)


def _labelled(
    caller: str, logits: mx.array, labels: mx.array, weights: mx.array | None, ignore_index: int | None
) -> tuple[mx.array, mx.array, mx.array | None]:
    """Return logits and labels in float32, zero where they do not count, and what each label weighs."""
    reduce.floating(caller, "logits", logits)
    reduce.same_shape(caller, "labels", labels, "logits", logits)
    weights = reduce.counts(caller, weights, logits.shape)
    if ignore_index is not None:
        ignore_index = checks.integer(caller, "ignore_index", ignore_index)
    labels = labels.astype(mx.float32)
    weights = reduce.ignoring(ignore_index, labels, weights)
    logits, labels = (reduce.keep(weights, values) for values in (logits.astype(mx.float32), labels))
    return logits, labels, weights
