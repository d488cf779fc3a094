"""The dtypes and shapes that an array of MLX can have."""

import math
from typing import Any

import mlx.core as mx

from purestep._core import tree

DTYPES = {tree.dtype_name(kind): kind for kind in vars(mx).values() if isinstance(kind, mx.Dtype)}
AXES = 64  # of an array that is stored; buffers have no more

_LARGEST = 2**63  # bytes; more has no number
_LONGEST = 2**31  # along an axis, for MLX


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of an array.

    >>> nbytes("bfloat16", (2, 3))
    12
    """
    return DTYPES[dtype].size * math.prod(shape)


def is_kind(dtype: str, shape: tuple[Any, ...]) -> bool:
    """Tell whether an array of this dtype and shape can have been stored."""
    if dtype not in DTYPES or len(shape) > AXES or not all(type(n) is int and n >= 0 for n in shape):
        return False
    # One that is too long cannot have been stored, unless it is empty and needs no bytes.
    return nbytes(dtype, shape) < _LARGEST if 0 not in shape else max(shape) < _LONGEST
