"""Losses of binary labels: cross entropy, from logits or from probabilities, and the focal loss."""

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core import inputs, weighting
from purestep._losses.core.numerics import softplus
from purestep._losses.core.validity import inside, nan_unless

_SMALLEST = 2.0**-126  # the smallest normal float32 number


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

    With `softplus(x) = log(1 + exp(x))`, label `y`, positive weight `w` and z-loss `z`:

        w y softplus(-logit) + (1 - y) softplus(logit) + z softplus(logit)^2

    The loss is computed in float32 and does not overflow at large logits. For multi-label classification, add
    an axis of classes.

    Args:
        logits: floating [...].
        labels: [...], booleans or numbers in [0, 1]; any other value makes the loss and its gradient NaN.
        weights: [...] or a shape that broadcasts to it; labels of weight 0 are skipped.
        pos_weight: factor of the loss of positive labels: a number of at least 0, or an array that broadcasts
            to [...], such as one number for each class. It does not change the weight of the mean.
        ignore_index: labels of this value are skipped; `None`: no label is.
        label_smoothing: in [0, 1): labels move by this fraction of their distance to 1/2.
        z_loss: at least 0, factor of the squared log-normalizer. It equals the z-loss of `cross_entropy`
            for two classes with the logits 0 and `logit`.

    Raises:
        ValueError: if the shapes do not fit, or an option is out of its range.
        TypeError: if the logits are not floating.

    >>> sigmoid_binary_cross_entropy(mx.array([0.0, 100.0]), mx.array([1, 1]))
    Mean(total=array(0.693147, dtype=float32), weight=array(2, dtype=float32))
    """
    caller = "sigmoid_binary_cross_entropy"
    label_smoothing = checks.number(caller, "label_smoothing", label_smoothing, least=0, below=1)
    z_loss = checks.number(caller, "z_loss", z_loss, least=0)
    if ignore_index is not None:
        ignore_index = checks.integer(caller, "ignore_index", ignore_index)
    logits, labels, weights = inputs.pair(
        caller, logits, labels, weights, ("logits", "labels"), ignore_index=ignore_index
    )
    valid = nan_unless(inside(labels))
    if label_smoothing:
        labels = (1 - label_smoothing) * labels + label_smoothing / 2
    positive = labels * _pos_weight(caller, pos_weight, logits)
    losses = positive * softplus(-logits) + (1 - labels) * softplus(logits)
    if z_loss:
        losses = losses + z_loss * mx.square(softplus(logits))
    return weighting.mean(caller, losses * valid, weights)


def binary_cross_entropy(
    probabilities: mx.array, labels: mx.array, *, weights: mx.array | None = None
) -> Mean:
    """Return the negative log-likelihood of labels under probabilities, in nats.

        -y max(log(p), -100) - (1 - y) max(log(1 - p), -100)

    If you have logits, prefer `sigmoid_binary_cross_entropy`: a probability near 1 has lost digits.

    Args:
        probabilities: floating [...], in [0, 1]; any other value makes the loss and its gradient NaN.
        labels: [...], booleans or numbers in [0, 1]; any other value makes the loss and its gradient NaN.
        weights: [...] or a shape that broadcasts to it; labels of weight 0 are skipped.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the probabilities are not floating.

    >>> binary_cross_entropy(mx.array([0.5, 0.0]), mx.array([1, 1])).total
    array(100.693, dtype=float32)
    """
    caller = "binary_cross_entropy"
    probabilities, labels, weights = inputs.pair(
        caller, probabilities, labels, weights, ("probabilities", "labels"), fill=(0.5, 0.0)
    )
    losses = -labels * _log(probabilities) - (1 - labels) * _log(1 - probabilities)
    losses = losses * nan_unless(inside(labels)) * nan_unless(inside(probabilities))
    return weighting.mean(caller, losses, weights)


def sigmoid_focal_loss(
    logits: mx.array,
    labels: mx.array,
    *,
    alpha: float | None = None,
    gamma: float = 2.0,
    weights: mx.array | None = None,
) -> Mean:
    """Return binary cross entropy with less weight on predictions that are already confident and right.

    With `p = sigmoid(logit)`, label `y` and `q = y (1 - p) + (1 - y) p`, the probability of an error:

        q^gamma * (-y log(p) - (1 - y) log(1 - p)) * (alpha y + (1 - alpha) (1 - y))

    The loss is computed in float32 from the logits.

    Args:
        logits: floating [...].
        labels: [...], booleans or numbers in [0, 1]; any other value makes the loss and its gradient NaN.
        alpha: in [0, 1], weight of positive labels; negative ones have weight `1 - alpha`. `None`: both have
            1.
        gamma: at least 0; a larger value reduces the loss of easy examples more. 0 is binary cross entropy.
        weights: [...] or a shape that broadcasts to it; labels of weight 0 are skipped.

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
    logits, labels, weights = inputs.pair(caller, logits, labels, weights, ("logits", "labels"))
    wrong, right = softplus(-logits), softplus(logits)
    losses = labels * wrong + (1 - labels) * right
    # log(q): for a label of 0 or 1 one of the two terms is log(0), and its gradient must be zero, not NaN.
    soft = mx.logical_and(labels > 0, labels < 1)
    inner = mx.where(soft, labels, 0.5)
    mixed = mx.logaddexp(mx.log(inner) - right, mx.log(1 - inner) - wrong)
    log_q = mx.where(soft, mixed, mx.where(labels > 0.5, -right, -wrong) + _slope(labels, logits))
    losses = losses * mx.exp(gamma * log_q)
    if alpha is not None:
        losses = losses * (alpha * labels + (1 - alpha) * (1 - labels))
    return weighting.mean(caller, losses * nan_unless(inside(labels)), weights)


def _slope(labels: mx.array, logits: mx.array) -> mx.array:
    """Return zero, with the gradient `(1 - 2p) / q` of log(q) with respect to a label of 0 or 1."""
    slope = mx.where(labels > 0.5, 1 - mx.exp(mx.minimum(logits, 80)), mx.exp(mx.minimum(-logits, 80)) - 1)
    return (labels - mx.stop_gradient(labels)) * mx.stop_gradient(slope)


def _log(x: mx.array) -> mx.array:
    """Return `max(log(x), -100)`, with a gradient of zero where the result is -100."""
    return mx.where(x < _SMALLEST, -100.0, mx.log(mx.maximum(x, _SMALLEST)))


def _pos_weight(caller: str, pos_weight: float | mx.array, logits: mx.array) -> mx.array | float:
    if isinstance(pos_weight, mx.array):
        weights = weighting.broadcast(caller, pos_weight, logits.shape, "the logits'", "pos_weight")
        assert weights is not None
        return weights
    return checks.number(caller, "pos_weight", pos_weight, least=0)
