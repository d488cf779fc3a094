"""Stateless transforms that compute each update from itself and its parameter alone."""

from collections.abc import Callable

import mlx.core as mx

from purestep._core import norms, scalars, sums, tree
from purestep._transforms.core.base import GradientTransform, required, without_state


def leafwise(
    caller: str, fn: Callable[[mx.array, mx.array], mx.array], *, elementwise: bool = False
) -> GradientTransform:
    """Make a transform from `fn(update, param) -> update`; `caller` is the public name for errors.

    `elementwise` is that of `checked`.

    Raises:
        ValueError: at update, if params is not given, or if structures or shapes differ, with the path.

    >>> both = leafwise("both", lambda update, param: update + param)
    >>> both.update({"w": mx.array(1.0)}, (), {"w": mx.array(2.0)})[0]
    {'w': array(3, dtype=float32)}
    """
    return without_state(
        caller,
        lambda updates, params: tree.map(fn, updates, required(caller, params)),
        elementwise=elementwise,
    )


def block_norm(array: mx.array) -> mx.array:
    """Return the Euclidean norm of one array, 0-d float32; 0 for an empty one."""
    return norms.norm(array)


def block_rms(array: mx.array) -> mx.array:
    """Return the root mean square of one array, 0-d float32; 0 for an empty one."""
    return scalars.root(sums.total(mx.square(array.astype(mx.float32))) / max(array.size, 1))
