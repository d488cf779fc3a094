"""Maps over trees that keep the containers."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core.tree.naming import children, is_namedtuple, items, join, key_segment, paths
from purestep._core.types import Tree


def leaves(tree: Tree) -> list[Any]:
    """Return every leaf, in the order of `items`."""
    found: list[Any] = []
    map(found.append, tree)
    return found


_leaves = leaves  # for functions with an argument of that name


def map(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply `fn(leaf, *other_leaves)` to every leaf and keep the containers.

    Raises:
        ValueError: if a tree of `rest` has another structure, with the first path that differs.

    >>> map(lambda x, y: x + y, {"a": 1, "b": [2]}, {"a": 10, "b": [20]})
    {'a': 11, 'b': [22]}
    """
    try:
        return _map(fn, tree, rest)
    except _DiffersError:
        return map_with_path(lambda _, *nodes: fn(*nodes), tree, *rest)  # raises, with the path


class _DiffersError(Exception):
    """Two trees of one map are built differently; `map_with_path` finds the path."""


def _map(fn: Callable[..., Any], node: Any, rest: tuple[Any, ...]) -> Any:
    # Without paths, for speed: steps map whole states, and maps are most of the cost of an uncompiled step.
    kind = type(node)
    if kind is dict:
        if not all(type(other) is dict and other.keys() == node.keys() for other in rest):
            raise _DiffersError
        return {key: _map(fn, child, tuple(other[key] for other in rest)) for key, child in node.items()}
    if kind is list or isinstance(node, tuple):
        if not all(type(other) is kind and len(other) == len(node) for other in rest):
            raise _DiffersError
        rows = zip(*rest, strict=True) if rest else ((),) * len(node)
        built = [_map(fn, child, others) for child, others in zip(node, rows, strict=True)]
        return built if kind is list else tuple(built) if kind is tuple else kind(*built)
    if node is None:
        if any(other is not None for other in rest):
            raise _DiffersError
        return None
    if any(other is None or type(other) in (dict, list) or isinstance(other, tuple) for other in rest):
        raise _DiffersError
    return fn(node, *rest)


def map_with_path(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply `fn(path, leaf, *other_leaves)` to every leaf and keep the containers. Raises as `map` does."""
    return _map_with_path(fn, "", tree, rest)


def _map_with_path(fn: Callable[..., Any], path: str, node: Any, others: tuple[Any, ...]) -> Any:
    if children(node) is None:
        for other in others:
            if children(other) is not None:
                raise _differs(path, node, other)
        return fn(path, node, *others)
    for other in others:
        if not _same_container(node, other):
            raise _differs(path, node, other)
    if node is None:
        return None
    if type(node) is dict:
        return {
            key: _map_with_path(
                fn, join(path, key_segment(key)), child, tuple(other[key] for other in others)
            )
            for key, child in node.items()
        }
    rows = zip(children(node) or [], *others, strict=True)
    built = [_map_with_path(fn, join(path, segment), child, tuple(row)) for (segment, child), *row in rows]
    return _rebuild(node, built)


def unflatten(like: Tree, leaves: list[Any]) -> Tree:
    """Return a tree with the containers of `like` and these leaves, in the order of `items(like)`."""
    remaining = list(reversed(leaves))
    if len(remaining) != len(_leaves(like)):
        raise ValueError(f"tree.unflatten: got {len(leaves)} leaves for a tree of {len(_leaves(like))}")
    return map(lambda _: remaining.pop(), like)


def fitted(tree: Tree, like: Tree) -> Tree:
    """Rebuild a tree with the containers of `like`, if both have leaves at the same paths.

    A tree read from a file lacks containers without leaves: `{}` of a layer without weights, `None`, the last
    entries of a list. This function adds them. A tree with other paths is returned unchanged.

    >>> fitted({"body": {"w": 1}}, {"body": {"w": 0, "b": None}, "dropout": {}})
    {'body': {'w': 1, 'b': None}, 'dropout': {}}
    """
    named = dict(items(tree))
    if named.keys() != set(paths(like)):
        return tree
    return map_with_path(lambda path, _: named[path], like)


def alike(first: Tree, second: Tree) -> bool:
    """Return whether two trees have the same containers, shapes and dtypes."""
    return matches(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, first, second)


def matches(same: Callable[[Any, Any], bool], first: Tree, second: Tree) -> bool:
    """Tell whether two trees have the same containers and `same(a, b)` is true for every pair of leaves.

    >>> matches(lambda a, b: a < b, {"w": 1}, {"w": 2}), matches(lambda a, b: True, {"w": 1}, {"b": 2})
    (True, False)
    """
    found: list[bool] = []
    try:
        _map(lambda a, b: found.append(same(a, b)), first, (second,))
    except _DiffersError:
        return False
    return all(found)


def where(condition: mx.array, on_true: Tree, on_false: Tree) -> Tree:
    """Choose between two trees by one 0-d boolean array."""
    return map(lambda a, b: mx.where(condition, a, b), on_true, on_false)


def _same_container(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if type(a) is dict:
        return a.keys() == b.keys()
    return a is None or len(a) == len(b)


def _rebuild(like: Any, children: list[Any]) -> Any:
    return type(like)(*children) if is_namedtuple(like) else type(like)(children)


def _differs(path: str, first: Any, other: Any) -> ValueError:
    def shape(node: Any) -> str:
        below = children(node)
        if below is None:
            return "a leaf"
        keys = ", ".join(segment for segment, _ in below[:6]) + (", ..." if len(below) > 6 else "")
        return "None" if node is None else f"a {type(node).__name__} of ({keys})"

    return ValueError(
        f"tree.map: {path or 'the tree'} is {shape(first)} in the first tree, {shape(other)} in another"
    )
