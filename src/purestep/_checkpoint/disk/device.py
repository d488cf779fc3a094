"""Where arrays are: on CUDA those that the host reads are kept apart from those that the kernels use.

Read by the host, an array in the device's memory is moved to memory that both can reach, and its old place
is given back. Moved by a writer's thread, it would be taken from under the kernels of the next step. And
memory that both can reach is slow for either after the other: pages travel as they are touched, also when
MLX has used the buffer again for something else. So the host reads copies, a restored state is copied to
the device, and what is left over does not stay with MLX for the next step to get.

On other devices there is one memory, and nothing is copied.
"""

from collections.abc import Collection

import mlx.core as mx

from purestep._core import hardware


def on_cuda() -> bool:
    """Tell whether this thread computes on CUDA."""
    return hardware.on_gpu() and not mx.metal.is_available()


def evaluate(arrays: Collection[mx.array]) -> None:
    """Evaluate arrays, doubles too, which MLX refuses beside what a GPU computes."""
    for doubles in (True, False):
        mx.eval([array for array in arrays if (array.dtype == mx.float64) == doubles])


def copied(array: mx.array) -> mx.array:
    """Return a copy in memory of its own, to be made on the device."""
    if array.dtype == mx.float64:  # which no kernel can use
        return mx.contiguous(array, stream=mx.cpu)
    # A selection is the one operation that copies every bit of every dtype and shares nothing.
    return mx.contiguous(mx.where(mx.array(True), array, array))


def placed(array: mx.array) -> mx.array:
    """Return what the host has made or read as it will be in the device's memory, on its way there."""
    if not on_cuda():
        return array
    moved = copied(array)
    mx.async_eval(moved)
    return moved


def trim() -> None:
    """Give the system what MLX holds of arrays that are gone, before a step gets memory the host has read."""
    if mx.cuda.is_available():
        mx.clear_cache()
