"""Contrastive losses of embeddings: NT-Xent, InfoNCE and triplets.

In the first two every example of a batch is a negative of the others. A batch cut into microbatches would
have fewer negatives and another loss, and is refused; `cached_contrastive_step` is exact.
"""

import mlx.core as mx

from purestep._core import checks, microbatching, sums
from purestep._core.mean import Mean
from purestep._losses.core import reduce
from purestep._losses.supervised.cosine import unit

_EPSILON = 2.0**-23  # optax's: the smallest step of float32 at 1
_WHY = "every row is a negative of all others, so the batch must be whole"
_REMEDY = "use cached_contrastive_step, which is exact, or microbatches=1"
_NEVER = -1e30  # in the place of log(0): a logsumexp of nothing but -inf has a NaN for its gradient


def ntxent(
    embeddings: mx.array,
    labels: mx.array,
    *,
    temperature: float | mx.array = 0.07,
    weights: mx.array | None = None,
) -> Mean:
    """Return the normalized, temperature-scaled cross entropy over pairs of one label.

    With `x_ij` the cosine of embeddings `i` and `j` over the temperature, for each ordered pair of one label:

        -log(exp(x_ij) / (exp(x_ij) + sum over k of another label than i's of exp(x_ik)))

    Args:
        embeddings: floating [n, features], of any length.
        labels: integer [n]: those of one label are each other's positives, all others negatives.
        temperature: greater than 0, a number or, where it is learned, a 0-d array.
        weights: [n] or a shape that broadcasts to it: what each embedding's pairs count; zero leaves it
            out, as a partner of others too.

    Returns:
        `Mean(total, weight)` over the ordered pairs; zero of both where no two share a label.

    Raises:
        ValueError: if the shapes do not fit, the temperature is out of its range, or the batch is one of
            several microbatches.
        TypeError: if embeddings are not floating or labels not integers.

    Reference: Chen et al., arXiv:2002.05709; with labels, Khosla et al., arXiv:2004.11362.

    >>> ntxent(mx.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), mx.array([0, 0, 1]), temperature=1.0)
    Mean(total=array(0.626523, dtype=float32), weight=array(2, dtype=float32))
    """
    caller = "ntxent"
    microbatching.whole_batch(caller, _WHY, _REMEDY)
    reduce.floating(caller, "embeddings", embeddings)
    reduce.integers(caller, "labels", labels)
    if embeddings.ndim != 2 or embeddings.shape[-1] == 0 or labels.shape != embeddings.shape[:1]:
        raise checks.error(
            caller,
            f"embeddings and labels must be [n, features] and [n], got {embeddings.shape} and {labels.shape}",
        )
    temperature = checks.number(caller, "temperature", temperature, above=0)
    count = labels.shape[0]
    weights = reduce.counts(caller, weights, (count,), "labels'")
    units = unit(reduce.keep(weights, embeddings), _EPSILON)
    similarities = units @ units.T / temperature
    same = labels[:, None] == labels
    pairs = mx.logical_and(same, mx.logical_not(mx.eye(count, dtype=mx.bool_)))
    counted = pairs.astype(mx.float32)
    if weights is not None:
        counted = counted * weights[:, None] * (weights != 0)
        same = mx.logical_or(same, weights == 0)
    negatives = reduce.logsumexp(mx.where(same, _NEVER, similarities), keepdims=True)
    return reduce.weighted(caller, mx.logaddexp(negatives - similarities, 0.0), counted)


def info_nce(
    queries: mx.array,
    keys: mx.array,
    *,
    temperature: float | mx.array = 0.1,
    symmetric: bool = False,
    weights: mx.array | None = None,
) -> Mean:
    """Return the cross entropy of finding, among all keys, the one of each query's own row.

    With `x_ij` the cosine of query `i` and key `j` over the temperature: `logsumexp_j(x_ij) - x_ii`.

    Args:
        queries: floating [n, features], of any length.
        keys: floating [n, features]; row `i` is the positive of query `i`, the other rows its negatives.
        temperature: greater than 0, a number or, where it is learned, a 0-d array.
        symmetric: average with the loss of finding each key's query, as CLIP does.
        weights: [n] or a shape that broadcasts to it: what each row counts; zero leaves it out, as a
            negative of others too.

    Raises:
        ValueError: if the shapes do not fit, the temperature is out of its range, or the batch is one of
            several microbatches.
        TypeError: if queries or keys are not floating.

    Reference: van den Oord et al., arXiv:1807.03748; symmetric, Radford et al., arXiv:2103.00020.

    >>> info_nce(mx.eye(2), mx.eye(2), temperature=1.0).value
    array(0.313262, dtype=float32)
    """
    caller = "info_nce"
    microbatching.whole_batch(caller, _WHY, _REMEDY)
    reduce.floating(caller, "queries", queries)
    reduce.floating(caller, "keys", keys)
    reduce.same_shape(caller, "keys", keys, "queries", queries)
    if queries.ndim != 2 or queries.shape[-1] == 0:
        raise checks.error(caller, f"queries must be [n, features], got {queries.shape}")
    temperature = checks.number(caller, "temperature", temperature, above=0)
    weights = reduce.counts(caller, weights, queries.shape[:1], "the rows'")
    if queries.size == 0:
        return reduce.weighted(caller, sums.total(queries, -1), weights)
    queries, keys = (unit(reduce.keep(weights, values), _EPSILON) for values in (queries, keys))
    logits = queries @ keys.T / temperature
    own = mx.diagonal(logits)
    losses = _others(logits, own, weights)
    if symmetric:
        losses = (losses + _others(logits.T, own, weights)) / 2
    return reduce.weighted(caller, losses, weights)


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
    """Return how far an anchor is from being nearer to its positive than to its negative by a margin.

        max(d(anchor, positive) - d(anchor, negative) + margin, 0)
        d(a, b) = (sum |a - b|^norm_degree + eps)^(1 / norm_degree)

    Args:
        anchors: floating [..., features].
        positives: floating [..., features].
        negatives: floating [..., features].
        norm_degree: at least 1.
        margin: at least 0, in the units of the distance.
        eps: greater than 0: what keeps the slope of a distance of zero finite.
        weights: [...] or a shape that broadcasts to it: what each triplet counts; zero leaves it out.

    Raises:
        ValueError: if the shapes do not fit, or an option is out of its range.
        TypeError: if one of the three is not floating.

    Reference: Schroff et al., arXiv:1503.03832.

    >>> triplet_margin_loss(mx.array([[0.0, 0.0]]), mx.array([[3.0, 4.0]]), mx.array([[0.0, 2.0]])).value
    array(4, dtype=float32)
    """
    caller = "triplet_margin_loss"
    for name, values in (("anchors", anchors), ("positives", positives), ("negatives", negatives)):
        reduce.floating(caller, name, values)
        reduce.same_shape(caller, name, values, "anchors", anchors)
    if anchors.ndim == 0 or anchors.shape[-1] == 0:
        raise checks.error(caller, f"anchors must have at least one feature, got {anchors.shape}")
    norm_degree = checks.number(caller, "norm_degree", norm_degree, least=1)
    margin = checks.number(caller, "margin", margin, least=0)
    eps = checks.number(caller, "eps", eps, above=0)
    weights = reduce.counts(caller, weights, anchors.shape[:-1])
    anchors, positives, negatives = (
        reduce.keep(weights, values.astype(mx.float32)) for values in (anchors, positives, negatives)
    )
    near = _distance(anchors - positives, norm_degree, eps)
    far = _distance(anchors - negatives, norm_degree, eps)
    return reduce.weighted(caller, mx.maximum(near - far + margin, 0), weights)


def _others(logits: mx.array, own: mx.array, weights: mx.array | None) -> mx.array:
    if weights is not None:
        logits = mx.where(weights != 0, logits, _NEVER)
    return mx.logsumexp(logits, axis=-1) - own


def _distance(differences: mx.array, degree: float, eps: float) -> mx.array:
    if degree == 2:
        return mx.sqrt(sums.total(mx.square(differences), -1) + eps)
    return mx.power(sums.total(mx.power(mx.abs(differences), degree), -1) + eps, 1 / degree)
