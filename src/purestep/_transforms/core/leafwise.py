"""Transforms that look at one update and its parameter at a time and keep no state."""

from collections.abc import Callable

import mlx.core as mx

from purestep._core import checks, scalars, sums, tree
from purestep._core.types import Params, Updates
from purestep._transforms.core.base import GradientTransform, without_state


def leafwise(caller: str, fn: Callable[[mx.array, mx.array], mx.array]) -> GradientTransform:
    """Make a transform of `fn(update, param) -> update`; `caller` is the public name that errors give.

    Raises:
        ValueError: at update, if params is not given, or if structures or shapes differ, with the path.

    >>> both = leafwise("both", lambda update, param: update + param)
    >>> both.update({"w": mx.array(1.0)}, (), {"w": mx.array(2.0)})[0]
    {'w': array(3, dtype=float32)}
    """
    return without_state(caller, lambda updates, params: tree.map(fn, updates, required(caller, params)))


def required(caller: str, params: Params | None) -> Updates:
    """Return the params, or refuse their absence."""
    if params is None:
        raise checks.error(caller, "params is needed: call update(updates, state, params)")
    return params


def block_norm(array: mx.array) -> mx.array:
    """Return the Euclidean norm of one array, 0-d float32; 0 for an empty one."""
    return tree.norm(array)


def block_rms(array: mx.array) -> mx.array:
    """Return the root mean square of one array, 0-d float32; 0 for an empty one."""
    return scalars.root(sums.total(mx.square(array.astype(mx.float32))) / max(array.size, 1))
