"""A tree of updates packed into one vector."""

from typing import Any

import mlx.core as mx

from purestep._core import tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import GradientTransform, check_transform, checked, taking_extra
from purestep._transforms.core.masks import same_structure


def flatten(inner: GradientTransform) -> GradientTransform:
    """Apply `inner` to all updates packed into one float32 vector.

    The parameters, and extra arguments with the structure of the updates, are packed too. The state of
    `inner` then holds one array instead of one for each parameter, and one kernel does the work of many. The
    result is the same for a transform that treats all elements in the same way (Adam, momentum, clipping by
    global norm). It differs for one that depends on single leaves or their shapes (LARS, Adafactor, masks).

    Differences from optax:

    1. The vector and the returned updates are float32 for all dtypes of the leaves.

    Args:
        inner: receives arrays of shape `[elements]`.

    >>> from purestep.transforms import trace
    >>> transform = flatten(trace(0.9))
    >>> params = {"w": mx.zeros((2, 2)), "b": mx.array(0.0)}
    >>> state = transform.init(params)
    >>> state.trace.shape
    (5,)
    >>> transform.update({"w": mx.ones((2, 2)), "b": mx.array(3.0)}, state)[0]["b"]
    array(3, dtype=float32)
    """
    check_transform("flatten", "inner", inner)
    inner_update = taking_extra(inner)

    def update(
        updates: Updates, state: Tree, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, Tree]:
        packed = _pack(updates)

        def packed_if_alike(value: Any) -> Any:
            if value is updates:  # keeps `updates is gradients`, so that a known norm is used
                return packed
            return _pack(value) if tree.children(value) and same_structure(value, updates) else value

        extra = {name: packed_if_alike(value) for name, value in extra.items()}
        out, state = inner_update(packed, state, None if params is None else _pack(params), **extra)
        return _unpack(out, updates), state

    return checked("flatten", lambda params: inner.init(_pack(params)), update)


def _pack(values: Tree) -> mx.array:
    # Sorted by path, since equal dicts may list their keys in another order.
    leaves = [leaf.astype(mx.float32).reshape(-1) for _, leaf in _sorted(values)]
    return mx.concatenate(leaves) if leaves else mx.zeros(0)


def _unpack(vector: mx.array, like: Tree) -> Tree:
    found, begin = {}, 0
    for path, leaf in _sorted(like):
        found[path] = vector[begin : begin + leaf.size].reshape(leaf.shape)
        begin += leaf.size
    return tree.map_with_path(lambda path, _: found[path], like)


def _sorted(values: Tree) -> list[tuple[str, mx.array]]:
    return sorted(tree.items(values), key=lambda item: item[0])
