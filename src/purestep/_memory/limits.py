"""MLX's memory limits, for the length of a block."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import mlx.core as mx

from purestep._core import checks

_CALLER = "memory.limits"


@contextmanager
def limits(
    *, memory: int | None = None, wired: int | None = None, cache: int | None = None
) -> Iterator[None]:
    """Set MLX's memory limits within a `with` block, and restore those of before.

    The limits are those of the process, not of a thread.

    Args:
        memory: bytes from which on MLX waits for running kernels before it submits more; a graph that needs
            more gets it all the same. At least the bytes that are in use now. With CUDA a limit lowers the
            peak of a step and makes it slower.
        wired: bytes that stay resident on an Apple GPU; at most the recommended working set. Elsewhere MLX
            ignores it.
        cache: bytes of freed memory that MLX keeps for later arrays; 0 returns all to the system.

    Raises:
        ValueError: for a negative number, a `memory` below what is in use, or a `wired` that MLX refuses.

    >>> before = mx.get_memory_limit()
    >>> with limits(memory=before // 2, cache=0):
    ...     mx.get_memory_limit() == before // 2
    True
    >>> mx.get_memory_limit() == before
    True
    """
    wanted = {"memory": memory, "wired": wired, "cache": cache}
    for name, value in wanted.items():
        if value is not None:
            checks.integer(_CALLER, name, value, least=0)
    used = mx.get_active_memory()
    if memory is not None and memory < used:
        raise checks.error(_CALLER, f"memory must be at least the {used} bytes in use, got {memory}")
    setters: dict[str, Callable[[int], int]] = {
        "memory": mx.set_memory_limit,
        "wired": mx.set_wired_limit,
        "cache": mx.set_cache_limit,
    }
    with ExitStack() as restored:
        for name, value in wanted.items():
            if value is not None:
                before = _set(name, setters[name], value)
                restored.callback(setters[name], before)
        yield


def _set(name: str, setter: Callable[[int], int], value: int) -> int:
    try:
        return setter(value)
    except (ValueError, RuntimeError) as error:
        raise checks.error(_CALLER, f"{name} was refused by MLX: {error}") from None
