"""The contents of a module's containers at one moment: read, restored and compared."""

import operator
from collections import deque
from collections.abc import Iterator
from types import CellType
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from purestep._core import tree
from purestep._modules.walking import attributes, is_plain_object, walk

_PLAIN = (str, bytes, int, float, complex, bool, type(None), mx.Dtype)


class Place(NamedTuple):
    """A container or object whose contents a forward pass can change, with its first path."""

    path: str
    node: Any


class Change(NamedTuple):
    """One difference; `before` or `after` is `None` if the entry is absent."""

    path: str
    before: Any
    after: Any


Contents = list[tuple[Any, Any]]
"""For each place, its items and its attributes."""

_NOTHING: dict[str, Any] = {}


def places(module: nn.Module) -> list[Place]:
    """Return every container and object of a module that can be written to."""
    return [Place(path, node) for path, node in walk(module) if _is_mutable(node)]


def read(where: list[Place]) -> Contents:
    """Return the present contents of the places, without references to the containers."""
    return [_read(place.node) for place in where]


def write(where: list[Place], contents: Contents) -> None:
    """Replace the contents of the places."""
    for place, (items, held) in zip(where, contents, strict=True):
        _write(place.node, items, held)


def replaced(contents: Contents, by_id: dict[int, Any]) -> Contents:
    """Return the contents with some items replaced; `by_id` maps the `id` of an item to its replacement."""

    def replace(items: Any) -> Any:
        if isinstance(items, dict):
            return {key: by_id.get(id(x), x) for key, x in items.items()}
        return items if items is None else [by_id.get(id(x), x) for x in items]

    return [(replace(items), attributes) for items, attributes in contents]


def changes(where: list[Place], before: Contents) -> Iterator[Change]:
    """Yield the differences from earlier contents, by identity. Equal Python numbers count as the same."""
    for place, (items, held) in zip(where, before, strict=True):
        node = place.node
        if isinstance(node, dict):  # most places: compared without a copy
            if not _identical(items, node):
                yield from _changed(place.path, items, dict(node))
            if held is not _NOTHING and not _identical(held, vars(node)):
                yield from _changed(place.path, held, vars(node))
            continue
        if isinstance(node, set):
            if (items or node) and set(items) != node:  # their order is not that of before after a restore
                yield Change(place.path, items, list(node))
            continue
        now_items, now_held = _read(node)
        if items is not None and not _same(tuple(items), tuple(now_items)):
            yield Change(place.path, items, now_items)
        if now_held is not held and not _identical(held, now_held):
            yield from _changed(place.path, held, now_held)


def _is_mutable(node: Any) -> bool:
    if isinstance(node, (dict, list, deque, set, CellType)):
        return True
    return not isinstance(node, mx.array) and is_plain_object(node) and bool(attributes(node))


def _read(node: Any) -> tuple[Any, dict[str, Any]]:
    if isinstance(node, dict):
        return dict(node), dict(vars(node)) if type(node) is not dict and hasattr(
            node, "__dict__"
        ) else _NOTHING
    if isinstance(node, (list, deque, set)):
        return list(node), _NOTHING
    if isinstance(node, CellType):
        try:
            return [node.cell_contents], _NOTHING
        except ValueError:  # an empty cell
            return [], _NOTHING
    return None, attributes(node)


def _write(node: Any, items: Any, held: dict[str, Any]) -> None:
    if isinstance(node, dict):
        dict.clear(node)
        dict.update(node, items)
        if held is not _NOTHING:
            vars(node).clear()
            vars(node).update(held)
    elif isinstance(node, list):
        node[:] = items
    elif isinstance(node, set):
        if items or node:  # each layer has a set that is mostly empty
            node.clear()
            node.update(items)
    elif isinstance(node, deque):
        node.clear()
        node.extend(items)
    elif isinstance(node, CellType):
        if items:
            node.cell_contents = items[0]
    else:
        for name in attributes(node).keys() - held.keys():
            object.__delattr__(node, name)
        for name, value in held.items():
            object.__setattr__(node, name, value)


def _identical(before: dict[Any, Any], after: dict[Any, Any]) -> bool:
    return before.keys() == dict.keys(after) and all(map(operator.is_, before.values(), dict.values(after)))


def _changed(path: str, before: dict[Any, Any], after: dict[Any, Any]) -> Iterator[Change]:
    for key in before if before.keys() == after.keys() else before.keys() | after.keys():
        was, now = before.get(key), after.get(key)
        if was is not now and not _same(was, now):
            yield Change(tree.join(path, str(key)), was, now)


def _same(was: Any, now: Any) -> bool:
    if was is now:
        return True
    if type(was) is not type(now):
        return False
    if isinstance(was, tuple):
        return len(was) == len(now) and all(map(_same, was, now))
    return isinstance(was, _PLAIN) and was == now
