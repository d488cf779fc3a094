"""Numbers that may be arrays already."""

import mlx.core as mx


def float32(value: float | mx.array) -> mx.array:
    """Return a Python number or an array as a float32 array.

    Not through `mx.array(value)`: given an array, that puts a conversion, and in a step a kernel, in its way.
    """
    return value.astype(mx.float32) if isinstance(value, mx.array) else mx.array(value, mx.float32)
