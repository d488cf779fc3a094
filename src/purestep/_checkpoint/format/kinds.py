"""The dtypes and shapes of MLX arrays."""

import math
from typing import Any

import mlx.core as mx

from purestep._core import tree

DTYPES = {tree.dtype_name(kind): kind for kind in vars(mx).values() if isinstance(kind, mx.Dtype)}
AXES = 64  # of a stored array; buffers have no more

_LARGEST = 2**63  # bytes
_LONGEST = 2**31  # along an axis, for MLX


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the number of bytes of an array.

    >>> nbytes("bfloat16", (2, 3))
    12
    """
    return DTYPES[dtype].size * math.prod(shape)


def is_kind(dtype: str, shape: tuple[Any, ...]) -> bool:
    """Tell whether an array can have this dtype and shape."""
    if dtype not in DTYPES or len(shape) > AXES or not all(type(n) is int and n >= 0 for n in shape):
        return False
    # An array that is too long cannot be stored, unless it is empty.
    return nbytes(dtype, shape) < _LARGEST if 0 not in shape else max(shape) < _LONGEST
