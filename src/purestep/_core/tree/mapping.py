"""Maps over trees that keep the containers."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from purestep._core.tree.naming import children, is_namedtuple, items, join, key_segment, paths
from purestep._core.types import Tree

_array = mx.array


def leaves(tree: Tree) -> list[Any]:
    """Return every leaf, in the order of `items`."""
    found: list[Any] = []
    _collect(found, tree)
    return found


_leaves = leaves  # for functions with an argument of that name


def map(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply `fn(leaf, *other_leaves)` to every leaf and keep the containers.

    Raises:
        ValueError: if a tree of `rest` has another structure, with the first path that differs.

    >>> map(lambda x, y: x + y, {"a": 1, "b": [2]}, {"a": 10, "b": [20]})
    {'a': 11, 'b': [22]}
    """
    if not rest:
        return _map_one(fn, tree)
    try:
        return _map_two(fn, tree, rest[0]) if len(rest) == 1 else _map(fn, tree, rest)
    except _DiffersError:
        return map_with_path(lambda _, *nodes: fn(*nodes), tree, *rest)  # raises, with the path


class _DiffersError(Exception):
    """Two trees of one map are built differently; `map_with_path` finds the path."""


# Maps are most of Python's cost of an uncompiled step. So they have no paths, arrays are recognized before
# anything else, and one and two trees have functions of their own. They have loops: a comprehension is a call
# more for each container before Python 3.12.


def _collect(found: list[Any], node: Any) -> None:
    kind = type(node)
    if kind is dict:
        node = node.values()
    elif kind is not list and not isinstance(node, tuple):
        if node is not None:
            found.append(node)
        return
    for child in node:
        if type(child) is _array:
            found.append(child)
        else:
            _collect(found, child)


def _map_one(fn: Callable[..., Any], node: Any) -> Any:
    kind = type(node)
    if kind is dict:
        made = {}
        for key, child in node.items():
            made[key] = fn(child) if type(child) is _array else _map_one(fn, child)
        return made
    if kind is list or isinstance(node, tuple):
        built = []
        for child in node:
            built.append(fn(child) if type(child) is _array else _map_one(fn, child))
        return built if kind is list else tuple(built) if kind is tuple else kind(*built)
    return None if node is None else fn(node)


def _map_two(fn: Callable[..., Any], node: Any, other: Any) -> Any:
    kind = type(node)
    if kind is dict:
        if type(other) is not dict or len(other) != len(node):
            raise _DiffersError
        made = {}
        for key, a in node.items():
            try:
                b = other[key]
            except KeyError:
                raise _DiffersError from None
            made[key] = fn(a, b) if type(a) is _array and type(b) is _array else _map_two(fn, a, b)
        return made
    if kind is list or isinstance(node, tuple):
        if type(other) is not kind or len(other) != len(node):
            raise _DiffersError
        built = []
        for a, b in zip(node, other, strict=True):
            built.append(fn(a, b) if type(a) is _array and type(b) is _array else _map_two(fn, a, b))
        return built if kind is list else tuple(built) if kind is tuple else kind(*built)
    if node is None or _is_container(other):
        if other is not None or node is not None:
            raise _DiffersError
        return None
    return fn(node, other)


def _map(fn: Callable[..., Any], node: Any, rest: Sequence[Any]) -> Any:
    kind = type(node)
    if kind is _array:
        for other in rest:
            if type(other) is not _array and _is_container(other):
                raise _DiffersError
        return fn(node, *rest)
    if kind is dict:
        for other in rest:
            if type(other) is not dict or other.keys() != node.keys():
                raise _DiffersError
        return {key: _map(fn, child, [other[key] for other in rest]) for key, child in node.items()}
    if kind is list or isinstance(node, tuple):
        for other in rest:
            if type(other) is not kind or len(other) != len(node):
                raise _DiffersError
        built = [_map(fn, child, others) for child, *others in zip(node, *rest, strict=True)]
        return built if kind is list else tuple(built) if kind is tuple else kind(*built)
    for other in rest:
        if other is not None if node is None else _is_container(other):
            raise _DiffersError
    return None if node is None else fn(node, *rest)


def _is_container(node: Any) -> bool:
    return node is None or type(node) in (dict, list) or isinstance(node, tuple)


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
    remaining = leaves[::-1]
    made, enough = None, True
    try:
        made = _filled(like, remaining.pop)
    except IndexError:
        enough = False
    if remaining or not enough:
        raise ValueError(f"tree.unflatten: got {len(leaves)} leaves for a tree of {len(_leaves(like))}")
    return made


def _filled(node: Any, pop: Callable[[], Any]) -> Any:
    kind = type(node)
    if kind is dict:
        made = {}
        for key, child in node.items():
            made[key] = pop() if type(child) is _array else _filled(child, pop)
        return made
    if kind is list or isinstance(node, tuple):
        built = []
        for child in node:
            built.append(pop() if type(child) is _array else _filled(child, pop))
        return built if kind is list else tuple(built) if kind is tuple else kind(*built)
    return None if node is None else pop()


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
    return _matches(_alike, first, second)


def _alike(a: Any, b: Any) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def matches(same: Callable[[Any, Any], bool], first: Tree, second: Tree) -> bool:
    """Tell whether two trees have the same containers and `same(a, b)` is true for every pair of leaves.

    >>> matches(lambda a, b: a < b, {"w": 1}, {"w": 2}), matches(lambda a, b: True, {"w": 1}, {"b": 2})
    (True, False)
    """
    return _matches(same, first, second)


def _matches(same: Callable[[Any, Any], bool], first: Any, second: Any) -> bool:
    kind = type(first)
    if kind is dict:
        if type(second) is not dict or first.keys() != second.keys():
            return False
        for key, child in first.items():  # noqa: SIM110  (a generator takes twice as long)
            if not _matches(same, child, second[key]):
                return False
        return True
    if kind is list or isinstance(first, tuple):
        if type(second) is not kind or len(first) != len(second):
            return False
        for a, b in zip(first, second, strict=True):  # noqa: SIM110
            if not _matches(same, a, b):
                return False
        return True
    if first is None:
        return second is None
    return not _is_container(second) and same(first, second)


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
