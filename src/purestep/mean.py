"""Means that can be merged exactly: a sum together with what it is over."""

from typing import NamedTuple

import mlx.core as mx

from purestep import sums

_SMALLEST = 2.0**-126  # of the normal float32 numbers: its inverse is still finite


class Mean(NamedTuple):
    """A weighted mean kept as its two sums, so that parts merge to the mean of the whole.

    Averaging the means of parts of unequal size is wrong; adding their totals and weights is exact.
    Losses return a `Mean`, and microbatches, ranks and evaluation batches are merged through it.

    Attributes:
        total: 0-d float32, the weighted sum.
        weight: 0-d float32, the sum of the weights: real tokens, examples.
    """

    total: mx.array
    weight: mx.array

    @classmethod
    def of(cls, values: mx.array, weights: mx.array | None = None) -> "Mean":
        """Sum values, with weights of a shape that broadcasts to theirs, in float32.

        A value of zero weight is left out even when it is infinite or NaN.

        >>> Mean.of(mx.array([1.0, 2.0, 9.0]), mx.array([1.0, 1.0, 0.0])).value
        array(1.5, dtype=float32)
        """
        values = values.astype(mx.float32)
        if weights is None:
            return cls(sums.total(values), mx.array(float(values.size)))
        weights = mx.broadcast_to(weights.astype(mx.float32), values.shape)
        return cls(sums.total(mx.where(weights == 0, 0.0, values * weights)), sums.total(weights))

    @classmethod
    def merge(cls, first: "Mean", *others: "Mean") -> "Mean":
        """Return the mean over all the parts together."""
        total, weight = first
        for other in others:
            total, weight = total + other.total, weight + other.weight
        return cls(total, weight)

    @property
    def value(self) -> mx.array:
        """`total / weight`, 0-d float32; zero, not NaN, where both are zero."""
        return self.share(self.total)

    def share(self, total: mx.array) -> mx.array:
        """Divide any other sum over the same data, such as a gradient's, by the weight; `0 / 0` is zero."""
        return total * (1 / mx.maximum(self.weight, _SMALLEST))
