"""Ends of groups of kernels on an NVIDIA GPU, which let the host wait for earlier work.

MLX sends kernels to the GPU in groups, and waits when ten groups are not done. A group ends when its kernels
are many or have read many elements, so how much memory waits depends on the sizes of arrays. `ended` ends
groups where it is called. Waiting by an operation on the CPU costs more: MLX frees the counters by which two
devices wait for each other when it has submitted everything, and CUDA then waits until the GPU is idle.
"""

import functools
import os
import re
from typing import Any

import mlx.core as mx

from purestep._core import cuda, hardware
from purestep._core.tracing import custom

END = "GroupEnd"  # the name of such an end in the graph that a capture reads
_MOST = 500  # arguments of a kernel: CUDA takes 4 kB
# By compute capability: the kernels after which MLX ends a group, and the elements they read, in 2**20.
_LIMITS = {
    (8, 0): (20, 400),
    (9, 0): (100, 1000),
    (10, 0): (100, 1000),
    (12, 0): (100, 1000),
    (12, 1): (20, 25),
}
_OTHERS, _METAL = (20, 100), (40, 40)


def usable(read: mx.array) -> bool:
    """Tell whether groups can be ended here, by kernels that have this array as an argument.

    They cannot if the array is so small that a kernel would need too many arguments, or without CUDA graphs.
    """
    in_groups = cuda.usable() and _given("MLX_USE_CUDA_GRAPHS", 1) != 0
    return in_groups and needed(read.size, limits()[1]) <= _MOST


def ended(before: mx.array, read: mx.array, groups: int) -> mx.array:
    """Return an array that is computed after another, and after which so many groups have ended.

    A tiny kernel for each of them has `read` as an argument as often as MLX's limit needs; it reads nothing
    of it.

    Args:
        before: float32, not empty.
        read: an array that stays in memory anyway, and that `usable` accepts.
        groups: at least 0.
    """
    count = needed(read.size, limits()[1])
    for _ in range(groups):
        if custom.is_capturing():
            (before,) = custom.opaque(END, [before], [((), mx.float32)])
            continue
        (before,) = _kernel(count)(
            inputs=[before, *[read] * count],
            template=[],
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            output_shapes=[()],
            output_dtypes=[mx.float32],
        )
    return before


def needed(size: int, most: int) -> int:
    """Return how many arrays of this size a kernel must read so that a group of `most` times 2**20 ends.

    >>> needed(2**20, 200)  # MLX ends a group that exceeds its limit, in whole units
    201
    """
    return -(-((most + 1) << 20) // max(size, 1))


def limits() -> tuple[int, int]:
    """Return the most kernels in a group on a GPU, and the elements that they read, in 2**20."""
    kernels, elements = _METAL
    if hardware.on_cuda():
        info = mx.device_info()
        major, minor = (int(info.get(f"compute_capability_{part}", 0)) for part in ("major", "minor"))
        kernels, elements = _LIMITS.get((major, minor), _OTHERS)
    return _given("MLX_MAX_OPS_PER_BUFFER", kernels), _given("MLX_MAX_MB_PER_BUFFER", elements)


def _given(variable: str, default: int) -> int:
    """Return the number in an environment variable as MLX reads it: 0 for other text."""
    text = os.environ.get(variable)
    if text is None:
        return default
    digits = re.match(r"\s*[+-]?\d+", text)
    return int(digits.group()) if digits else 0


@functools.cache
def _kernel(count: int) -> Any:
    return mx.fast.cuda_kernel(
        name=f"purestep_end_{count}",
        input_names=["before", *(f"x{index}" for index in range(count))],
        output_names=["out"],
        source="out[0] = before[0];",
        ensure_row_contiguous=False,
    )
