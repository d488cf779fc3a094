"""Quotients that are defined where numerator and denominator are both zero."""

import mlx.core as mx

_SMALL, _LARGE = 2.0**-30, 2.0**30  # between them, the fourth power of a bound is a normal float32 number


def nonzero(numerator: mx.array, denominator: mx.array, eps: float | mx.array) -> mx.array:
    """Return the denominator, with 1 where both it and the numerator are 0: 0 / 0 becomes 0, not NaN.

    Args:
        numerator: the numerator of the quotient.
        denominator: of a shape that broadcasts with the numerator; `eps` has been added already.
        eps: a number above 0 means that the denominator is never 0; it is then returned with no operation.

    >>> zeros = mx.array([0.0, 3.0])
    >>> zeros / nonzero(zeros, mx.abs(zeros), eps=0.0)
    array([0, 1], dtype=float32)
    """
    if not isinstance(eps, mx.array) and eps:
        return denominator
    return mx.where(mx.logical_and(numerator == 0, denominator == 0), 1.0, denominator)


def factor_within(bound: float | mx.array, norm: mx.array) -> mx.array:
    """Return the factor that reduces a norm to its bound: 1 within the bound, NaN if the norm is not finite.

    With a bound of 0 the factor is 0, except 1 for a norm of 0.

    >>> factor_within(2.0, mx.array([0.0, 1.0, 4.0])), factor_within(0.0, mx.array([0.0, 1.0]))
    (array([1, 1, 0.5], dtype=float32), array([1, 0], dtype=float32))
    """
    if not isinstance(bound, mx.array) and _SMALL <= bound <= _LARGE:
        # The same values and derivatives by fewer operations; no power of the bound in them is 0 or infinite.
        return bound / mx.maximum(norm, bound) + 0 * norm
    beyond = norm > bound
    # 0 * norm is 0 for a finite norm and NaN for an infinite one. The quotient alone would give 0 for that.
    return mx.where(beyond, bound / mx.where(beyond, norm, 1.0), 1.0) + 0 * norm
