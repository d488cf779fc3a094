"""MLX's settings for NVIDIA GPUs that help training, set by one call."""

import os

import mlx.core as mx

from purestep._core import checks

_UNUSED = 1024  # bytes: importing this package allocates less


def configure_cuda(
    *, group_kernels: int = 300, group_elements: int = 200 * 2**20, abort_on_cache_misses: bool = False
) -> dict[str, str]:
    """Bound the memory of work that waits for an NVIDIA GPU, and allow batches of many shapes.

    MLX sends kernels to the GPU in groups, and is up to ten groups ahead of it. Arrays that a waiting kernel
    reads stay in memory. By default a group has 100 kernels, so a whole step may wait: GPT-2 with 8 x 1024
    tokens then peaks at 16 GB on an H100, and at 7.5 GB with the groups that this call sets, in 0.98 to 1.04
    of the time. Smaller groups take less memory and more time: 0.85 and 1.1 with 100 * 2**20 elements.
    Groups that are bounded by their kernels alone take less time and more memory, because the kernels of a
    large update are then one group: 0.95 to 1.0 of the time of the default and 1.1 to 1.4 of its memory with
    `group_kernels=24, group_elements=2**32`.

    The call sets environment variables that MLX reads before its first operation on the GPU, so call it at
    the beginning of the program. Variables that are set already stay as they are. On other devices it does
    nothing. `python -m purestep train` makes this call.

    Args:
        group_kernels: the most kernels in a group, at least 1 (`MLX_MAX_OPS_PER_BUFFER`).
        group_elements: a group ends when its kernels read more elements than this, in steps of 2**20, at
            least 2**20 (`MLX_MAX_MB_PER_BUFFER`, which counts elements).
        abort_on_cache_misses: whether MLX ends the program with "Cache thrashing" after 800 groups of new
            shapes (`MLX_ENABLE_CACHE_THRASHING_CHECK`).

    Returns:
        The variables that the call has set.

    Raises:
        ValueError: for a number that is too small.
        RuntimeError: if MLX has allocated arrays before: it may have read its settings.

    >>> {} if mx.cuda.is_available() else configure_cuda()
    {}
    """
    caller = "configure_cuda"
    kernels = checks.integer(caller, "group_kernels", group_kernels, least=1)
    elements = checks.integer(caller, "group_elements", group_elements, least=2**20)
    if not mx.cuda.is_available():
        return {}
    wanted = {
        "MLX_MAX_OPS_PER_BUFFER": str(kernels),
        "MLX_MAX_MB_PER_BUFFER": str(elements // 2**20),
        "MLX_ENABLE_CACHE_THRASHING_CHECK": str(int(abort_on_cache_misses)),
    }
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    if missing and mx.get_peak_memory() > _UNUSED:
        raise RuntimeError(
            f"{caller}: MLX has read its settings; call it at the beginning of the program, before any array "
            "is made"
        )
    os.environ.update(missing)
    return missing
