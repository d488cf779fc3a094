"""The effective rank of a matrix."""

import mlx.core as mx

from purestep._core import checks, tree

_EPS = 2.0**-52


def effective_rank(matrix: mx.array) -> mx.array:
    """Return the exponential of the entropy of the singular values of a matrix, scaled to a sum of 1.

    It is between 1 and the smaller side: n equal singular values give n. The singular values are the square
    roots of the eigenvalues of a Gram matrix, computed on the CPU in float64, so those below about 1e-7 of
    the largest count as 0. Call it between steps, on weights or on a matrix of activations: it
    is no part of a step.

    Args:
        matrix: [..., rows, columns], real and floating-point. All axes but the last are joined for more than
            two.

    Returns:
        0-d float32; 0 for a matrix of zeros, and NaN for one with an element that is not finite.

    Raises:
        ValueError: if the matrix has fewer than two axes or no elements.

    Reference: Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007.

    >>> round(effective_rank(mx.eye(5)).item(), 4), round(effective_rank(mx.ones((4, 6))).item(), 4)
    (5.0, 1.0)
    """
    caller = "effective_rank"
    if not isinstance(matrix, mx.array) or not mx.issubdtype(matrix.dtype, mx.floating):
        kind = tree.dtype_name(matrix.dtype) if isinstance(matrix, mx.array) else type(matrix).__name__
        raise TypeError(f"{caller}: matrix must be a floating-point array, got {kind}")
    if matrix.ndim < 2 or not matrix.size:
        raise checks.error(
            caller, f"matrix must have two axes and at least one element, got shape {matrix.shape}"
        )
    flat = matrix.reshape(-1, matrix.shape[-1]).astype(mx.float32)
    finite = mx.isfinite(flat).all()
    flat = mx.where(finite, flat, mx.zeros_like(flat))  # eigenvalues of NaN would raise an error
    largest = mx.abs(flat).max()
    flat = flat / mx.where(largest == 0, 1.0, largest)
    with mx.stream(mx.cpu):  # the only device with float64
        wide = flat.astype(mx.float64)
        gram = wide.T @ wide if wide.shape[0] >= wide.shape[1] else wide @ wide.T
        values = mx.linalg.eigvalsh(gram)
        # Smaller eigenvalues are rounding errors of the Gram matrix, and some are negative.
        singular = mx.sqrt(mx.where(values > _EPS * sum(wide.shape) * values.max(), values, 0))
        shares = singular / mx.where(largest == 0, 1.0, singular.sum())
        entropy = -(shares * mx.log(mx.where(shares > 0, shares, 1))).sum()
        rank = mx.exp(entropy).astype(mx.float32)
    return mx.where(finite, mx.where(largest == 0, 0.0, rank), mx.nan)
