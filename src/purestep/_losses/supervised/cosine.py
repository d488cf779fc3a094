"""The cosine of the angle between vectors, and the distance that it makes."""

import mlx.core as mx

from purestep._core import checks, sums
from purestep._core.mean import Mean
from purestep._losses.core import reduce


def cosine_similarity(
    predictions: mx.array, targets: mx.array, *, epsilon: float = 0.0, weights: mx.array | None = None
) -> Mean:
    """Return the mean cosine between vectors: 1 where they point one way, -1 where opposite ways.

        sum(a b) / (max(|a|, sqrt(epsilon)) max(|b|, sqrt(epsilon)))

    No length overflows or underflows; a vector of zeros has a cosine and a gradient of zero.

    Args:
        predictions: floating [..., features].
        targets: floating [..., features].
        epsilon: at least 0, the least squared length that is divided by.
        weights: [...] or a shape that broadcasts to it: what each vector counts; zero leaves it out.

    Raises:
        ValueError: if the shapes do not fit, or epsilon is out of its range.
        TypeError: if either is not floating.

    >>> cosine_similarity(mx.array([[3.0, 4.0]]), mx.array([[1.0, 0.0]])).value
    array(0.6, dtype=float32)
    """
    cosines, weights = _cosines("cosine_similarity", predictions, targets, epsilon, weights)
    return reduce.weighted("cosine_similarity", cosines, weights)


def cosine_distance(
    predictions: mx.array, targets: mx.array, *, epsilon: float = 0.0, weights: mx.array | None = None
) -> Mean:
    """Return the mean of one less the cosine between vectors: 0 where they point one way, 2 where opposite.

    Args and Raises: as `cosine_similarity`.

    >>> cosine_distance(mx.array([[3.0, 4.0]]), mx.array([[1.0, 0.0]])).value
    array(0.4, dtype=float32)
    """
    cosines, weights = _cosines("cosine_distance", predictions, targets, epsilon, weights)
    return reduce.weighted("cosine_distance", 1 - cosines, weights)


def unit(vectors: mx.array, epsilon: float = 0.0) -> mx.array:
    """Return vectors [..., features], in float32, divided by their lengths; zeros, and their gradient, stay.

    >>> unit(mx.array([[3e30, 4e30], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0, 0]], dtype=float32)
    """
    vectors = vectors.astype(mx.float32)
    largest = mx.stop_gradient(mx.abs(vectors).max(axis=-1, keepdims=True))
    # By the largest first, so that no square overflows or is lost; infinity makes zeros of zeros.
    scale = mx.where(largest == 0, mx.inf, largest)
    vectors = vectors / scale
    squared = sums.total(mx.square(vectors), -1, keepdims=True)
    if epsilon:
        squared = mx.maximum(squared, epsilon / scale / scale)
    return vectors * mx.rsqrt(mx.where(squared == 0, 1.0, squared))


def _cosines(
    caller: str, predictions: mx.array, targets: mx.array, epsilon: float, weights: mx.array | None
) -> tuple[mx.array, mx.array | None]:
    reduce.floating(caller, "predictions", predictions)
    reduce.floating(caller, "targets", targets)
    reduce.same_shape(caller, "targets", targets, "predictions", predictions)
    if predictions.ndim == 0 or predictions.shape[-1] == 0:
        raise checks.error(caller, f"predictions must have at least one feature, got {predictions.shape}")
    epsilon = checks.number(caller, "epsilon", epsilon, least=0)
    weights = reduce.counts(caller, weights, predictions.shape[:-1])
    first, second = (unit(reduce.keep(weights, values), epsilon) for values in (predictions, targets))
    return sums.total(first * second, -1), weights
