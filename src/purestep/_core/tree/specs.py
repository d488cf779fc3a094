"""Descriptions of trees: containers, keys, dtypes and shapes, without the numbers."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from purestep._core.tree.paths import is_namedtuple, join, key_segment
from purestep._core.types import Tree

_FLOATING = {"float16", "bfloat16", "float32", "float64"}


def spec(tree: Tree) -> list[Any]:
    """Describe a tree of arrays in plain lists: containers, keys, field names, dtypes and shapes.

    Two trees are built alike exactly when `differences(spec(a), spec(b))` is empty. The description
    holds nothing but lists, strings and integers, so it can be written as JSON or msgpack.

    >>> spec({"w": mx.zeros((2, 3)), "state": None})
    ['dict', [['w', ['array', 'float32', [2, 3]]], ['state', ['none']]]]
    """
    if tree is None:
        return ["none"]
    if type(tree) is dict:
        return ["dict", [[key, spec(child)] for key, child in tree.items()]]
    if is_namedtuple(tree):
        fields = [[name, spec(child)] for name, child in zip(tree._fields, tree, strict=True)]
        return ["namedtuple", type(tree).__name__, fields]
    if type(tree) in (list, tuple):
        return [type(tree).__name__, [spec(child) for child in tree]]
    if not isinstance(tree, mx.array):
        return ["other", type(tree).__name__]
    return ["array", dtype_name(tree.dtype), list(tree.shape)]


def dtype_name(dtype: mx.Dtype) -> str:
    """Return `float32` for `mx.float32`."""
    return str(dtype).rsplit(".", 1)[-1]


def differences(
    got: list[Any], want: list[Any], got_name: str = "got", want_name: str = "want", *, cast: bool = False
) -> list[str]:
    """Say, a line a path, in what two specs differ; an empty list when they describe the same tree.

    With `cast`, floating-point arrays of different dtypes count as the same.
    """
    return list(_differing("", got, want, got_name, want_name, cast))


def _differing(path: str, a: list[Any], b: list[Any], name_a: str, name_b: str, cast: bool) -> Iterator[str]:
    shown = path or "the tree"
    if a[0] != b[0] or (a[0] == "namedtuple" and a[1] != b[1]):
        yield f"{shown} is {_describe(a)} in {name_a}, {_describe(b)} in {name_b}"
    elif a[0] == "array":
        if a[2] != b[2]:
            yield f"{shown} has shape {tuple(a[2])} in {name_a}, {tuple(b[2])} in {name_b}"
        if a[1] != b[1] and not (cast and {a[1], b[1]} <= _FLOATING):
            yield f"{shown} has dtype {a[1]} in {name_a}, {b[1]} in {name_b}"
    else:
        below_a, below_b = dict(spec_children(a)), dict(spec_children(b))
        for segment, child in below_a.items():
            if segment in below_b:
                yield from _differing(join(path, segment), child, below_b[segment], name_a, name_b, cast)
            else:
                yield f"{join(path, segment)} is in {name_a}, not in {name_b}"
        for segment in below_b:
            if segment not in below_a:
                yield f"{join(path, segment)} is in {name_b}, not in {name_a}"


def spec_items(spec: list[Any]) -> list[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Return the path, and the dtype's name and shape, of every array that a spec describes, in its order.

    >>> spec_items(spec({"w": mx.zeros((2, 3))}))
    [('w', ('float32', (2, 3)))]
    """
    return [
        (".".join(segments), (node[1], tuple(node[2])))
        for segments, node in spec_nodes(spec)
        if node[0] == "array"
    ]


def spec_nodes(
    spec: list[Any], segments: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """Yield every node of a spec, containers before what they hold, with the segments of its path.

    >>> [segments for segments, _ in spec_nodes(spec({"w": (None,)}))]
    [(), ('w',), ('w', '0')]
    """
    yield segments, spec
    for segment, child in spec_children(spec):
        yield from spec_nodes(child, (*segments, segment))


def spec_children(node: list[Any]) -> list[tuple[str, list[Any]]]:
    """Return a spec's (path segment, child) pairs; none for an array or `None`."""
    kind = node[0]
    if kind == "dict":
        return [(key_segment(key), child) for key, child in node[1]]
    if kind == "namedtuple":
        return [(name, child) for name, child in node[2]]
    if kind in ("list", "tuple"):
        return [(str(index), child) for index, child in enumerate(node[1])]
    return []


def _describe(node: list[Any]) -> str:
    if node[0] == "array":
        return f"an array of {node[1]} {tuple(node[2])}"
    if node[0] == "namedtuple":
        return f"a {node[1]}"
    return "None" if node[0] == "none" else f"a {node[1] if node[0] == 'other' else node[0]}"
