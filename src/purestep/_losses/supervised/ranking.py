"""The listwise softmax loss of ranking."""

import mlx.core as mx

from purestep._core import sums
from purestep._core.mean import Mean
from purestep._losses.core import inputs, numerics, validity, weighting


def ranking_softmax_loss(
    logits: mx.array,
    labels: mx.array,
    *,
    where: mx.array | None = None,
    weights: mx.array | None = None,
) -> Mean:
    """Return the cross entropy between the relevance of the items of a list and the softmax of their scores.

        -sum_i weight_i label_i log_softmax(logits)_i

    The sum is over the items selected by `where`. The mean is over the lists with at least one such item.
    The labels of a list need not sum to 1.

    Args:
        logits: floating [..., items], scores.
        labels: [..., items], relevance of at least 0; a negative one makes the loss and its gradient NaN.
        where: [..., items] or a shape that broadcasts to it: nonzero for real items. Other items are padding
            and may be NaN. `None`: all items are real.
        weights: [..., items] or a shape that broadcasts to it: weight of each item's label.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the logits are not floating.

    Reference: Cao et al., 2007, doi:10.1145/1273496.1273513; Bruch et al., 2019, doi:10.1145/3341981.3344221.

    >>> ranking_softmax_loss(mx.array([[2.0, 1.0, 3.0]]), mx.array([[1, 0, 0]])).value
    array(1.40761, dtype=float32)
    """
    caller = "ranking_softmax_loss"
    inputs.floating(caller, "logits", logits)
    inputs.same_shape(caller, "labels", labels, "logits", logits)
    inputs.last_axis(caller, "logits", logits, "item")
    weights = weighting.broadcast(caller, weights, logits.shape, "the logits'")
    real = weighting.broadcast(caller, where, logits.shape, "the logits'", "where")
    logits, labels = (weighting.masked(real, values.astype(mx.float32)) for values in (logits, labels))
    if weights is not None:
        labels = labels * weighting.masked(real, weights)
    if real is not None:
        logits = mx.where(real != 0, logits, numerics.LOG_ZERO)
    logs = numerics.finite_where_zero(labels, numerics.log_softmax(logits))
    losses = -sums.total(labels * logs, -1)
    losses = losses * validity.nan_unless((mx.stop_gradient(labels) >= 0).all(axis=-1))
    lists = None if real is None else (real != 0).any(axis=-1)
    return weighting.mean(caller, losses, lists)
