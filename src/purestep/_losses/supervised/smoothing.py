"""Label smoothing and PolyLoss."""

import mlx.core as mx

from purestep._core import checks, sums
from purestep._core.mean import Mean
from purestep._losses.core import inputs, numerics, validity, weighting


def smooth_labels(labels: mx.array, alpha: float) -> mx.array:
    """Return distributions moved towards the uniform one: `(1 - alpha) label + alpha / classes`.

    `cross_entropy(..., label_smoothing=alpha)` has the same effect and needs no array of this size.

    Args:
        labels: floating [..., classes], each row a distribution.
        alpha: in [0, 1], probability that is spread evenly over the classes.

    Returns:
        [..., classes], in the dtype of the labels.

    Raises:
        ValueError: if there is no class, or alpha is out of its range.
        TypeError: if the labels are not floating.

    Reference: Szegedy et al., arXiv:1512.00567.

    >>> smooth_labels(mx.array([1.0, 0.0, 0.0, 0.0]), 0.4)
    array([0.7, 0.1, 0.1, 0.1], dtype=float32)
    """
    caller = "smooth_labels"
    inputs.floating(caller, "labels", labels)
    inputs.last_axis(caller, "labels", labels)
    alpha = checks.number(caller, "alpha", alpha, least=0, most=1)
    wide = labels.astype(mx.float32)
    return ((1 - alpha) * wide + alpha / labels.shape[-1]).astype(labels.dtype)


def poly_loss_cross_entropy(
    logits: mx.array, labels: mx.array, *, epsilon: float = 2.0, weights: mx.array | None = None
) -> Mean:
    """Return cross entropy with epsilon added to the first coefficient of its expansion in `1 - p`.

    With `q = softmax(logits)`:

        sum_c label_c (-log(q_c) + epsilon (1 - q_c))

    The loss is computed in float32. A class of label 0 adds nothing, even if its logit is -inf.

    Args:
        logits: floating [..., classes], unnormalized.
        labels: floating [..., classes], each row a distribution. A row with a negative entry, or with a sum
            that differs from 1 by more than 0.01, makes the loss and its gradient NaN.
        epsilon: at least -1; 0 is cross entropy.
        weights: [...] or a shape that broadcasts to it; rows of weight 0 are skipped.

    Raises:
        ValueError: if the shapes do not fit, or epsilon is out of its range.
        TypeError: if logits or labels are not floating.

    Reference: Leng et al., arXiv:2204.12511.

    >>> poly_loss_cross_entropy(mx.zeros((1, 2)), mx.array([[1.0, 0.0]])).value
    array(1.69315, dtype=float32)
    """
    caller = "poly_loss_cross_entropy"
    epsilon = checks.number(caller, "epsilon", epsilon, least=-1)
    inputs.floating(caller, "labels", labels)
    logits, labels, weights = inputs.rows(caller, logits, labels, weights, ("logits", "labels"))
    log_q = numerics.log_softmax(logits)
    costs = -numerics.finite_where_zero(labels, log_q) - epsilon * mx.expm1(log_q)
    losses = sums.total(labels * costs, -1) * validity.distributions(labels, weights)
    return weighting.mean(caller, losses, weights)
