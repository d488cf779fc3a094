"""The group of processes, and sums over a tree of which this process holds a part of each array."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import mlx.core as mx

_SUM: ContextVar[Callable[[mx.array], mx.array] | None] = ContextVar("purestep_sum", default=None)


@contextmanager
def over_parts(sum_over_ranks: Callable[[mx.array], mx.array]) -> Iterator[None]:
    """Complete sums over trees within the block by those of the other processes.

    >>> with over_parts(lambda own: own + 1):
    ...     completed(mx.array(2.0))
    array(3, dtype=float32)
    """
    token = _SUM.set(sum_over_ranks)
    try:
        yield
    finally:
        _SUM.reset(token)


def completed(own: mx.array) -> mx.array:
    """Return the sum over a whole tree, from that over the parts that this process holds."""
    sum_over_ranks = _SUM.get()
    return own if sum_over_ranks is None else sum_over_ranks(own)


def all_completed(own: mx.array) -> mx.array:
    """Return whether something holds for a whole tree, from whether it holds for the parts here, 0-d."""
    sum_over_ranks = _SUM.get()
    return own if sum_over_ranks is None else sum_over_ranks((~own).astype(mx.float32)) == 0


def launched() -> mx.distributed.Group:
    """Return the group of all processes that were launched together; of this one, if it was started alone.

    >>> launched().size()
    1
    """
    hosts = os.environ.get("MLX_HOSTFILE")
    if hosts and _is_blank(Path(hosts)):  # `mlx.launch -n 1` names an empty file, which MLX refuses
        del os.environ["MLX_HOSTFILE"]
    return mx.distributed.init()


def _is_blank(path: Path) -> bool:
    try:
        return path.stat().st_size < 16 and not path.read_text().strip()
    except (OSError, ValueError):
        return False


def group_of(caller: str, group: Any) -> mx.distributed.Group:
    """Return the group, or that of all processes for `None`; refuse another value."""
    if group is None:
        return launched()
    if not isinstance(group, mx.distributed.Group):
        raise TypeError(
            f"{caller}: group must be a group of mx.distributed.init, got a {type(group).__name__}"
        )
    return group
