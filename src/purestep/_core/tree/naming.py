"""Paths: names of the places in a tree, and leaves by path.

A path is an unambiguous name of a leaf, such as `opt_state.1.mu.layers.0.weight`. NamedTuple fields and most
dict keys are written as they are, and list and tuple positions as digits. Integer dict keys are in brackets
(`[0]`). Dict keys that could be mistaken for a position or for several segments are JSON strings (`"0"`,
`"a.b"`).
"""

import json
import re
from functools import lru_cache
from typing import Any

import mlx.core as mx

from purestep._core.types import Tree

_LARGEST_KEY = 10_000  # bits; Python writes no integer of more than 4300 digits
_PLAIN_KEY = re.compile(r'(?!\d+$)[^.\[\]"]+')


def children(node: Any) -> list[tuple[str, Any]] | None:
    """Return a container's (path segment, child) pairs, or `None` for a leaf."""
    if node is None:
        return []
    if type(node) is mx.array:
        return None
    if type(node) is dict:
        return [(key_segment(key), child) for key, child in node.items()]
    if is_namedtuple(node):
        return list(zip(node._fields, node, strict=True))
    if type(node) in (list, tuple):
        return [(str(index), child) for index, child in enumerate(node)]
    return None


def is_namedtuple(node: Any) -> bool:
    """Return whether a value is a NamedTuple."""
    return isinstance(node, tuple) and hasattr(node, "_fields")


def join(path: str, segment: str) -> str:
    """Return the path of a child."""
    return f"{path}.{segment}" if path and segment else path or segment


@lru_cache(1 << 14, typed=True)
def key_segment(key: Any) -> str:
    """Return the path segment of a dict key.

    >>> key_segment("weight"), key_segment("a.b"), key_segment(0)
    ('weight', '"a.b"', '[0]')
    """
    if isinstance(key, str):
        return key if _PLAIN_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)
    if isinstance(key, int) and not isinstance(key, bool):
        if key.bit_length() > _LARGEST_KEY:
            raise ValueError(f"tree: dict keys must be less than 2**{_LARGEST_KEY}, got a larger integer")
        return f"[{key}]"
    raise TypeError(f"tree: dict keys must be strings or integers, got {key!r}")


def items(tree: Tree) -> list[tuple[str, Any]]:
    """Return every leaf with its path, in the order of the containers.

    >>> items({"layers": [{"weight": 1}, {}], "0": 2, "bias": None})
    [('layers.0.weight', 1), ('"0"', 2)]
    """
    found: list[tuple[str, Any]] = []
    _collect("", tree, found)
    return found


# Recursive functions stand at the top level of the module. A nested function that calls itself is a reference
# cycle, and would keep whole states in memory until Python collects cycles.
def _collect(path: str, node: Any, found: list[tuple[str, Any]]) -> None:
    if type(node) is mx.array:
        found.append((path, node))
        return
    below = children(node)
    if below is None:
        found.append((path, node))
        return
    prefix = path and path + "."
    for segment, child in below:
        _collect(prefix + segment if segment else path, child, found)


def paths(tree: Tree) -> list[str]:
    """Return the path of every leaf, in the order of `items`."""
    return [path for path, _ in items(tree)]


def fields(tree: Tree, name: str) -> list[tuple[str, Any]]:
    """Return the path and the value of every NamedTuple field with this name."""
    found: list[tuple[str, Any]] = []
    _collect_fields("", tree, name, found)
    return found


def _collect_fields(path: str, node: Any, name: str, found: list[tuple[str, Any]]) -> None:
    named = is_namedtuple(node)
    if not named:
        values = node.values() if type(node) is dict else node if type(node) in (list, tuple) else ()
        if {mx.array}.issuperset(map(type, values)):
            return  # parameters and moments: they are most of a state
    for segment, child in children(node) or []:
        if named and segment == name:
            found.append((join(path, segment), child))
        if type(child) is not mx.array:
            _collect_fields(join(path, segment), child, name, found)
