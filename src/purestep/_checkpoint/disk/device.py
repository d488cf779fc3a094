"""Host copies of device arrays on CUDA.

When the host reads an array in device memory, MLX moves it to memory that both can reach and frees its old
place. If the writer's thread did this, kernels of the next step could lose their arrays. Memory that both
reach is also slow, because its pages move between host and device, even after MLX reuses the buffer. So the
host reads copies, a restored state is copied to the device, and these buffers are not left to MLX's cache.

Other devices have one memory, and nothing is copied.
"""

from collections.abc import Collection

import mlx.core as mx

from purestep._core.hardware import on_cuda


def evaluate(arrays: Collection[mx.array]) -> None:
    """Evaluate arrays, also float64 ones, which MLX cannot evaluate together with arrays of a GPU."""
    for doubles in (True, False):
        mx.eval([array for array in arrays if (array.dtype == mx.float64) == doubles])


def copied(array: mx.array) -> mx.array:
    """Return an unevaluated copy, which the device makes."""
    if array.dtype == mx.float64:  # which no kernel can use
        return mx.contiguous(array, stream=mx.cpu)
    # `mx.where` copies every bit of every dtype and never shares memory.
    return mx.contiguous(mx.where(mx.array(True), array, array))


def placed(array: mx.array) -> mx.array:
    """Return host arrays as unevaluated copies in device memory."""
    if not on_cuda():
        return array
    moved = copied(array)
    mx.async_eval(moved)
    return moved


def trim() -> None:
    """Return MLX's cached memory to the system: a step must not reuse memory that the host has read."""
    if mx.cuda.is_available():
        mx.clear_cache()
