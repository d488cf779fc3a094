"""Contrastive losses of embeddings: NT-Xent, InfoNCE and the triplet margin loss."""

import mlx.core as mx

from purestep._core import checks, sums
from purestep._core.mean import Mean
from purestep._core.tracing import microbatching
from purestep._losses.core import inputs, weighting
from purestep._losses.core.numerics import LOG_ZERO, logsumexp, softplus
from purestep._losses.supervised.cosine import unit

_EPSILON = 2.0**-23  # the spacing of float32 numbers at 1, as in optax
# Microbatches would have fewer negatives than the whole batch, and so another loss.
_WHY = "every row is a negative of all others, so the batch must be whole"
_REMEDY = "use cached_contrastive_step, which is exact, or microbatches=1"


def ntxent(
    embeddings: mx.array,
    labels: mx.array,
    *,
    temperature: float | mx.array = 0.07,
    weights: mx.array | None = None,
) -> Mean:
    """Return NT-Xent: the normalized, temperature-scaled cross entropy over pairs with equal labels.

    Let `x_ij` be the cosine of embeddings `i` and `j` divided by the temperature. Each ordered pair of equal
    labels has the loss

        -log(exp(x_ij) / (exp(x_ij) + sum over k with another label than i of exp(x_ik)))

    Args:
        embeddings: floating [n, features]; they are normalized to length 1.
        labels: integer [n]; embeddings with equal labels are positives of each other, others are negatives.
        temperature: greater than 0; a number, or a 0-d array if it is learned.
        weights: [n] or a shape that broadcasts to it: the pair (i, j) has the weight of embedding `i`. An
            embedding of weight 0 is skipped, also as a partner of others.

    Returns:
        `Mean(total, weight)` over the ordered pairs; both are zero if no two labels are equal.

    Raises:
        ValueError: if the shapes do not fit, the temperature is out of its range, or the batch is one of
            several microbatches (use `cached_contrastive_step`).
        TypeError: if embeddings are not floating or labels not integers.

    Reference: Chen et al., arXiv:2002.05709; with labels, Khosla et al., arXiv:2004.11362.

    >>> ntxent(mx.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), mx.array([0, 0, 1]), temperature=1.0)
    Mean(total=array(0.626523, dtype=float32), weight=array(2, dtype=float32))
    """
    caller = "ntxent"
    microbatching.whole_batch(caller, _WHY, _REMEDY)
    inputs.floating(caller, "embeddings", embeddings)
    inputs.integers(caller, "labels", labels)
    if embeddings.ndim != 2 or embeddings.shape[-1] == 0 or labels.shape != embeddings.shape[:1]:
        raise checks.error(
            caller,
            f"embeddings and labels must be [n, features] and [n], got {embeddings.shape} and {labels.shape}",
        )
    temperature = checks.number(caller, "temperature", temperature, above=0)
    count = labels.shape[0]
    weights = weighting.broadcast(caller, weights, (count,), "labels'")
    units = unit(weighting.masked(weights, embeddings), _EPSILON)
    similarities = units @ units.T / temperature
    same = labels[:, None] == labels
    pairs = mx.logical_and(same, mx.logical_not(mx.eye(count, dtype=mx.bool_)))
    counted = pairs.astype(mx.float32)
    if weights is not None:
        counted = counted * weights[:, None] * (weights != 0)
        same = mx.logical_or(same, weights == 0)
    negatives = logsumexp(mx.where(same, LOG_ZERO, similarities), keepdims=True)
    return weighting.mean(caller, softplus(negatives - similarities), counted)


def info_nce(
    queries: mx.array,
    keys: mx.array,
    *,
    temperature: float | mx.array = 0.1,
    symmetric: bool = False,
    weights: mx.array | None = None,
) -> Mean:
    """Return InfoNCE: the cross entropy of finding, for each query, the key of its row among all keys.

    The loss of row `i` is `logsumexp_j(x_ij) - x_ii`, where `x_ij` is the cosine of query `i` and key `j`
    divided by the temperature.

    Args:
        queries: floating [n, features]; they are normalized to length 1.
        keys: floating [n, features]; row `i` is the positive of query `i`, the other rows its negatives.
        temperature: greater than 0; a number, or a 0-d array if it is learned.
        symmetric: average this loss with that of finding the query of each key, as in CLIP.
        weights: [n] or a shape that broadcasts to it. A row of weight 0 is skipped, also as a negative of
            others.

    Raises:
        ValueError: if the shapes do not fit, the temperature is out of its range, or the batch is one of
            several microbatches (use `cached_contrastive_step`).
        TypeError: if queries or keys are not floating.

    Reference: van den Oord et al., arXiv:1807.03748; symmetric, Radford et al., arXiv:2103.00020.

    >>> info_nce(mx.eye(2), mx.eye(2), temperature=1.0).value
    array(0.313262, dtype=float32)
    """
    caller = "info_nce"
    microbatching.whole_batch(caller, _WHY, _REMEDY)
    inputs.floating(caller, "queries", queries)
    inputs.floating(caller, "keys", keys)
    inputs.same_shape(caller, "keys", keys, "queries", queries)
    if queries.ndim != 2 or queries.shape[-1] == 0:
        raise checks.error(caller, f"queries must be [n, features], got {queries.shape}")
    temperature = checks.number(caller, "temperature", temperature, above=0)
    weights = weighting.broadcast(caller, weights, queries.shape[:1], "the rows'")
    if queries.size == 0:
        return weighting.mean(caller, sums.total(queries, -1), weights)
    queries, keys = (unit(weighting.masked(weights, values), _EPSILON) for values in (queries, keys))
    logits = queries @ keys.T / temperature
    own = mx.diagonal(logits)
    losses = _classified(logits, own, weights)
    if symmetric:
        losses = (losses + _classified(logits.T, own, weights)) / 2
    return weighting.mean(caller, losses, weights)


def triplet_margin_loss(
    anchors: mx.array,
    positives: mx.array,
    negatives: mx.array,
    *,
    norm_degree: float = 2,
    margin: float = 1.0,
    eps: float = 1e-6,
    weights: mx.array | None = None,
) -> Mean:
    """Return the triplet loss: an anchor should be closer to its positive than to its negative, by a margin.

        max(d(anchor, positive) - d(anchor, negative) + margin, 0)
        d(a, b) = (sum |a - b|^norm_degree + eps)^(1 / norm_degree)

    Args:
        anchors: floating [..., features].
        positives: floating [..., features].
        negatives: floating [..., features].
        norm_degree: at least 1.
        margin: at least 0, in the units of the distance.
        eps: greater than 0; keeps the slope at a distance of zero finite.
        weights: [...] or a shape that broadcasts to it; triplets of weight 0 are skipped.

    Raises:
        ValueError: if the shapes do not fit, or an option is out of its range.
        TypeError: if one of the three is not floating.

    Reference: Schroff et al., arXiv:1503.03832.

    >>> triplet_margin_loss(mx.array([[0.0, 0.0]]), mx.array([[3.0, 4.0]]), mx.array([[0.0, 2.0]])).value
    array(4, dtype=float32)
    """
    caller = "triplet_margin_loss"
    for name, values in (("anchors", anchors), ("positives", positives), ("negatives", negatives)):
        inputs.floating(caller, name, values)
        inputs.same_shape(caller, name, values, "anchors", anchors)
    inputs.last_axis(caller, "anchors", anchors, "feature")
    norm_degree = checks.number(caller, "norm_degree", norm_degree, least=1)
    margin = checks.number(caller, "margin", margin, least=0)
    eps = checks.number(caller, "eps", eps, above=0)
    weights = weighting.broadcast(caller, weights, anchors.shape[:-1])
    anchors, positives, negatives = (
        weighting.masked(weights, values.astype(mx.float32)) for values in (anchors, positives, negatives)
    )
    near = _distance(anchors - positives, norm_degree, eps)
    far = _distance(anchors - negatives, norm_degree, eps)
    return weighting.mean(caller, mx.maximum(near - far + margin, 0), weights)


def _classified(logits: mx.array, own: mx.array, weights: mx.array | None) -> mx.array:
    if weights is not None:
        logits = mx.where(weights != 0, logits, LOG_ZERO)
    return mx.logsumexp(logits, axis=-1) - own


def _distance(differences: mx.array, degree: float, eps: float) -> mx.array:
    if degree == 2:
        return mx.sqrt(sums.total(mx.square(differences), -1) + eps)
    return mx.power(sums.total(mx.power(mx.abs(differences), degree), -1) + eps, 1 / degree)
