"""Cosine similarity and cosine distance of vectors."""

import mlx.core as mx

from purestep._core import checks, sums
from purestep._core.mean import Mean
from purestep._losses.core import inputs, weighting


def cosine_similarity(
    predictions: mx.array, targets: mx.array, *, epsilon: float = 0.0, weights: mx.array | None = None
) -> Mean:
    """Return the mean cosine of the angle between vectors: 1 for equal directions, -1 for opposite ones.

        sum(a b) / (max(|a|, sqrt(epsilon)) max(|b|, sqrt(epsilon)))

    No length overflows or underflows. A vector of zeros has a cosine and a gradient of zero.

    Args:
        predictions: floating [..., features].
        targets: floating [..., features].
        epsilon: at least 0, lower bound of the squared lengths in the denominator.
        weights: [...] or a shape that broadcasts to it; vectors of weight 0 are skipped.

    Raises:
        ValueError: if the shapes do not fit, or epsilon is out of its range.
        TypeError: if predictions or targets are not floating.

    >>> cosine_similarity(mx.array([[3.0, 4.0]]), mx.array([[1.0, 0.0]])).value
    array(0.6, dtype=float32)
    """
    cosines, weights = _cosines("cosine_similarity", predictions, targets, epsilon, weights)
    return weighting.mean("cosine_similarity", cosines, weights)


def cosine_distance(
    predictions: mx.array, targets: mx.array, *, epsilon: float = 0.0, weights: mx.array | None = None
) -> Mean:
    """Return the mean of 1 minus the cosine: 0 for equal directions, 2 for opposite ones.

    Args and Raises: as `cosine_similarity`.

    >>> cosine_distance(mx.array([[3.0, 4.0]]), mx.array([[1.0, 0.0]])).value
    array(0.4, dtype=float32)
    """
    cosines, weights = _cosines("cosine_distance", predictions, targets, epsilon, weights)
    return weighting.mean("cosine_distance", 1 - cosines, weights)


def unit(vectors: mx.array, epsilon: float = 0.0) -> mx.array:
    """Return vectors [..., features] divided by their lengths, in float32.

    A vector of zeros stays zero and has a gradient of zero.

    >>> unit(mx.array([[3e30, 4e30], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0, 0]], dtype=float32)
    """
    vectors = vectors.astype(mx.float32)
    largest = mx.stop_gradient(mx.abs(vectors).max(axis=-1, keepdims=True))
    # Division by the largest entry keeps squares in range; a scale of infinity keeps zero vectors zero.
    scale = mx.where(largest == 0, mx.inf, largest)
    vectors = vectors / scale
    squared = sums.total(mx.square(vectors), -1, keepdims=True)
    if epsilon:
        squared = mx.maximum(squared, epsilon / scale / scale)
    return vectors * mx.rsqrt(mx.where(squared == 0, 1.0, squared))


def _cosines(
    caller: str, predictions: mx.array, targets: mx.array, epsilon: float, weights: mx.array | None
) -> tuple[mx.array, mx.array | None]:
    inputs.floating(caller, "targets", targets)
    first, second, weights = inputs.rows(
        caller, predictions, targets, weights, ("predictions", "targets"), of="feature"
    )
    epsilon = checks.number(caller, "epsilon", epsilon, least=0)
    return sums.total(unit(first, epsilon) * unit(second, epsilon), -1), weights
