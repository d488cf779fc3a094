"""The listwise softmax loss of ranking."""

import mlx.core as mx

from purestep._core import checks, sums
from purestep._core.mean import Mean
from purestep._losses.core import reduce

_NEVER = -1e30  # in the place of log(0): a logsumexp of nothing but -inf has a NaN for its gradient


def ranking_softmax_loss(
    logits: mx.array,
    labels: mx.array,
    *,
    where: mx.array | None = None,
    weights: mx.array | None = None,
) -> Mean:
    """Return the cross entropy of each list's relevance against the softmax of its scores.

        -sum_i weight_i label_i log_softmax(logits)_i

    over the items of a list that `where` holds; the mean is over the lists that have one. The labels of a
    list need not sum to 1.

    Args:
        logits: floating [..., items], scores.
        labels: [..., items], relevance of at least 0; a negative one makes the loss and its gradient NaN.
        where: [..., items] or a shape that broadcasts to it: true, or not zero, for the items that are
            there; the others, NaN or not, are padding.
        weights: [..., items] or a shape that broadcasts to it: what each item's label counts.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the logits are not floating.

    Reference: Cao et al., 2007, doi:10.1145/1273496.1273513; Bruch et al., 2019, doi:10.1145/3341981.3344221.

    >>> ranking_softmax_loss(mx.array([[2.0, 1.0, 3.0]]), mx.array([[1, 0, 0]])).value
    array(1.40761, dtype=float32)
    """
    name = "ranking_softmax_loss"
    reduce.floating(name, "logits", logits)
    reduce.same_shape(name, "labels", labels, "logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise checks.error(name, f"logits must have at least one item, got {logits.shape}")
    weights = reduce.counts(name, weights, logits.shape, "the logits'")
    there = reduce.counts(name, where, logits.shape, "the logits'", "where")
    logits, labels = (reduce.keep(there, values.astype(mx.float32)) for values in (logits, labels))
    if weights is not None:
        labels = labels * reduce.keep(there, weights)
    if there is not None:
        logits = mx.where(there != 0, logits, _NEVER)
    losses = -sums.total(labels * reduce.spared(labels, reduce.log_softmax(logits)), -1)
    losses = losses * mx.where((mx.stop_gradient(labels) >= 0).all(axis=-1), 1.0, mx.nan)
    lists = None if there is None else (there != 0).any(axis=-1)
    return reduce.weighted(name, losses, lists)
