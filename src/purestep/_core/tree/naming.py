"""Paths: names of the places in a tree, and leaves by path.

A path names a leaf in one unambiguous string: `opt_state.1.mu.layers.0.weight`. NamedTuple fields and
plain dict keys are written bare, list and tuple positions as digits, dict keys that would read as
something else in JSON quotes (`"0"`, `"a.b"`), and integer dict keys in brackets (`[0]`).
"""

import json
import re
from typing import Any

from purestep._core.types import Tree

_LARGEST_KEY = 10_000  # bits; Python writes no integer of more than 4300 digits
_PLAIN_KEY = re.compile(r'(?!\d+$)[^.\[\]"]+')


def children(node: Any) -> list[tuple[str, Any]] | None:
    """Return a container's (path segment, child) pairs, or `None` for a leaf."""
    if node is None:
        return []
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
    below = children(node)
    if below is None:
        found.append((path, node))
        return
    for segment, child in below:
        _collect(join(path, segment), child, found)


def paths(tree: Tree) -> list[str]:
    """Return the path of every leaf, in the order of `items`."""
    return [path for path, _ in items(tree)]


def fields(tree: Tree, name: str) -> list[tuple[str, Any]]:
    """Return the path and the value of the field of this name, for every NamedTuple in the tree."""
    found: list[tuple[str, Any]] = []
    _collect_fields("", tree, name, found)
    return found


def _collect_fields(path: str, node: Any, name: str, found: list[tuple[str, Any]]) -> None:
    for segment, child in children(node) or []:
        at = join(path, segment)
        if segment == name and is_namedtuple(node):
            found.append((at, child))
        _collect_fields(at, child, name, found)
