"""Arrays of other libraries as MLX arrays."""

from typing import Any

import mlx.core as mx


def array_of(caller: str, name: str, value: Any) -> mx.array:
    """Return a copy of an array of numpy, or of a library like it, as an MLX array.

    Raises:
        TypeError: if MLX has no such numbers: strings, objects, dates, another byte order; or if some of the
            values are masked.

    >>> import numpy as np
    >>> array_of("Batches", "x", np.zeros(2)[::-1])
    array([0, 0], dtype=float32)
    """
    if hasattr(value, "mask") and hasattr(value, "filled"):
        raise TypeError(f"{caller}: {name} must not be a masked array, which would lose its mask: fill it")
    try:
        try:
            return mx.array(value)
        except ValueError:  # a view that runs backwards
            return mx.array(value.copy())
    except (ValueError, RuntimeError, TypeError, AttributeError):
        dtype = getattr(value, "dtype", None)
        found = (
            f"an array of {dtype.str if hasattr(dtype, 'str') else dtype}" if dtype else type(value).__name__
        )
        raise TypeError(
            f"{caller}: {name} must hold numbers that MLX has, in this machine's byte order, got {found}"
        ) from None
