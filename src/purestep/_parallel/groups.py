"""The group of processes of a step."""

from typing import Any

import mlx.core as mx


def group_of(caller: str, group: Any) -> mx.distributed.Group:
    """Return the group, or that of all processes for `None`; refuse another value."""
    if group is None:
        return mx.distributed.init()
    if not isinstance(group, mx.distributed.Group):
        raise TypeError(
            f"{caller}: group must be a group of mx.distributed.init, got a {type(group).__name__}"
        )
    return group
