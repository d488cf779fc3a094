"""What every container of a module holds at one moment: to put it back, and to see what has changed."""

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
    """One difference; `before` or `after` is `None` where the entry is absent."""

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
    """Return what the places hold now; the containers themselves are not kept."""
    return [_read(place.node) for place in where]


def write(where: list[Place], contents: Contents) -> None:
    """Have the places hold these contents again, whatever they hold now."""
    for place, (items, held) in zip(where, contents, strict=True):
        _write(place.node, items, held)


def changes(where: list[Place], before: Contents) -> Iterator[Change]:
    """Yield what the places hold now and did not hold before, by identity; equal numbers are the same."""
    for place, (items, held) in zip(where, before, strict=True):
        now_items, now_held = _read(place.node)
        if isinstance(items, dict):
            yield from _changed(place.path, items, now_items)
        elif items is not None and not _same(tuple(items), tuple(now_items)):
            yield Change(place.path, items, now_items)
        if held is not _NOTHING or now_held is not _NOTHING:
            yield from _changed(place.path, held, now_held)


def lost(change: Change, *, trained: bool = False) -> str:
    """Return what is wrong with a change that no one receives, and the remedy."""
    if trained:
        return (
            f"the forward pass rewrote {change.path}, a trained array, which would be lost: freeze it, so "
            "that it is part of model_state"
        )
    kind = "array" if any(isinstance(x, mx.array) for x in (change.before, change.after)) else "value"
    return (
        f"the forward pass changed {change.path}, a {kind} that is not in model_state, which would be lost. "
        "State must be an array under a name without '_' that exists before the call and is frozen: then it "
        "is part of model_state. Draw random numbers without a key of the module's own: rng= decides them. "
        f"If later calls do not depend on it, pass discard={change.path!r} to functional"
    )


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
    elif isinstance(node, (deque, set)):
        node.clear()
        node.extend(items) if isinstance(node, deque) else node.update(items)
    elif isinstance(node, CellType):
        if items:
            node.cell_contents = items[0]
    else:
        for name in attributes(node).keys() - held.keys():
            object.__delattr__(node, name)
        for name, value in held.items():
            object.__setattr__(node, name, value)


def _changed(path: str, before: dict[Any, Any], after: dict[Any, Any]) -> Iterator[Change]:
    for key in before.keys() | after.keys():
        was, now = before.get(key), after.get(key)
        if was is not now and not _same(was, now):
            yield Change(tree.join(path, str(key)), was, now)


def _same(was: Any, now: Any) -> bool:
    if was is now:
        return True
    if type(was) is not type(now):
        return False
    if isinstance(was, tuple):
        return len(was) == len(now) and all(_same(a, b) for a, b in zip(was, now, strict=True))
    return isinstance(was, _PLAIN) and was == now
