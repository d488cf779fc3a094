"""Products with the matrices of experts, whose gradients MLX cannot describe."""

from typing import Any

import mlx.core as mx

from purestep._core.tracing import custom
from purestep._core.tracing.replacing import Replacement

_gather_mm: Any = mx.gather_mm


def gather_mm(
    a: mx.array,
    b: mx.array,
    lhs_indices: mx.array | None = None,
    rhs_indices: mx.array | None = None,
    *,
    sorted_indices: bool = False,
    **options: Any,
) -> mx.array:
    """Return the products; with sorted indices the gradient of `b` is one operation, `SegmentedMM`."""
    indices = [each for each in (lhs_indices, rhs_indices) if each is not None]
    if not custom.is_capturing() or not sorted_indices or len(indices) != 1 or min(a.ndim, b.ndim) < 2:
        return _gather_mm(a, b, lhs_indices, rhs_indices, sorted_indices=sorted_indices, **options)

    def forward(a: mx.array, b: mx.array, given: mx.array) -> mx.array:
        place = (None, given) if lhs_indices is None else (given, None)
        return _gather_mm(a, b, *place, sorted_indices=True, **options)

    function: Any = custom.custom_function(forward)

    @function.vjp
    def _(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        a, b, given = primals
        of_a = mx.vjp(lambda a: forward(a, b, given), [a], [cotangent])[1][0]
        shape = (*b.shape[:-2], b.shape[-1], b.shape[-2])
        (of_b,) = custom.opaque("SegmentedMM", [cotangent, a, given], [(shape, b.dtype)])
        return of_a, of_b.swapaxes(-1, -2), mx.zeros_like(given)

    return function(a, b, *indices)


described = Replacement(mx, gather_mm=gather_mm).installed
