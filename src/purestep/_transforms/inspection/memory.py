"""The memory of a transform's state, computed before anything is allocated."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, Tree
from purestep._transforms.core.base import GradientTransform, check_transform


def state_memory(transform: GradientTransform, params: Params) -> dict[str, float]:
    """Return the bytes of state per element of the parameters, for each field of the state.

    Only shapes and dtypes are read: nothing is computed or allocated.

    Args:
        transform: the transform whose `init` makes the state.
        params: a tree of at least one element.

    Returns:
        A dict from the path of each field, in the order of the state, to its bytes divided by the number of
        elements of params. The values sum to the whole state. For a field that holds other states, the fields
        of those are listed.

    Raises:
        ValueError: if params holds no elements.

    >>> from purestep.transforms import scale_by_adam
    >>> state_memory(scale_by_adam(), {"w": mx.zeros((10, 10), mx.bfloat16)})
    {'count': 0.04, 'mu': 4.0, 'nu': 4.0}
    """
    check_transform("state_memory", "transform", transform)
    elements = tree.size(params)
    if elements == 0:
        raise checks.error("state_memory", "params must hold at least one element")
    state = transform.init(params)
    return {
        path or "state": sum(leaf.nbytes for leaf in leaves) / elements
        for path, leaves in _states("", state, params)
        if leaves
    }


def _states(path: str, node: Any, params: Params) -> Iterator[tuple[str, list[mx.array]]]:
    """Yield the path and the leaves of every field that holds no states."""
    if not _holds_states(node, params):
        yield path, tree.leaves(node)
        return
    for segment, child in tree.children(node) or []:
        yield from _states(tree.join(path, segment), child, params)


def _holds_states(node: Any, params: Params) -> bool:
    """Tell whether a node holds states: NamedTuples that are not containers of the parameters."""
    if tree.is_namedtuple(node):
        return _containers(node) != _containers(params)
    if not isinstance(node, (tuple, list, dict)) or _containers(node) == _containers(params):
        return False
    return any(_holds_states(child, params) for _, child in tree.children(node) or [])


def _containers(node: Tree) -> tree.Spec:
    return tree.spec(tree.map(lambda _: mx.array(0), node))
