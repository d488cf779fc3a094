"""Large arrays in blocks of rows, on a CPU.

Arrays of one block stay in the processor's caches, and what is computed on the way takes the memory of one
block. MLX also keeps freed memory of up to 32 MB only for later arrays of a CPU: larger arrays are new memory
each time, which takes longer than most operations.
"""

import math
from typing import Any

import mlx.core as mx

from purestep._core.tracing.custom import custom_function

ELEMENTS = 1 << 19  # of a block


def length(rows: int, elements: int) -> int:
    """Return the number of rows of a block, so that all blocks have about the same length.

    Args:
        rows: their number, at least 1.
        elements: of one row.
    """
    most = max(1, ELEMENTS // max(1, elements))
    return math.ceil(rows / math.ceil(rows / most))


def split(array: mx.array, length: int) -> list[mx.array]:
    """Return blocks of rows, whose gradient is one concatenation; that of slices is one array for each."""
    if array.shape[0] <= length:
        return [array]

    @custom_function
    def function(array: mx.array) -> list[mx.array]:
        return [array[start : start + length] for start in range(0, array.shape[0], length)]

    @function.vjp
    def _(array: mx.array, cotangents: Any, outputs: Any) -> mx.array:
        return mx.concatenate(cotangents)

    found: Any = function(array)
    return found
