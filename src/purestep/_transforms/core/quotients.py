"""Quotients that have a value where both of their sides are zero."""

import mlx.core as mx


def nonzero(numerator: mx.array, denominator: mx.array, eps: float | mx.array) -> mx.array:
    """Return a denominator that is 1 where it and the numerator are 0, so that their quotient is 0, not NaN.

    Args:
        numerator: what will be divided.
        denominator: of a shape that broadcasts with it; it holds `eps` already.
        eps: where this is a number above 0 the denominator is never 0, and comes back with no operation.

    >>> zeros = mx.array([0.0, 3.0])
    >>> zeros / nonzero(zeros, mx.abs(zeros), eps=0.0)
    array([0, 1], dtype=float32)
    """
    if not isinstance(eps, mx.array) and eps:
        return denominator
    return mx.where(mx.logical_and(numerator == 0, denominator == 0), 1.0, denominator)


def factor_within(bound: float | mx.array, norm: mx.array) -> mx.array:
    """Return the factor that takes a norm to within its bound: 1 within it, NaN if it is not finite.

    A bound of 0 makes everything 0, a norm of 0 too.

    >>> factor_within(2.0, mx.array([0.0, 1.0, 4.0])), factor_within(0.0, mx.array([0.0, 1.0]))
    (array([1, 1, 0.5], dtype=float32), array([1, 0], dtype=float32))
    """
    beyond = norm > bound
    # 0 * norm is 0 for every finite norm and NaN for an infinite one, whose quotient alone would be 0.
    return mx.where(beyond, bound / mx.where(beyond, norm, 1.0), 1.0) + 0 * norm
