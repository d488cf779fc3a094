"""Specs: descriptions of trees by containers, keys, dtypes and shapes, without the values."""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import mlx.core as mx

from purestep._core.tree.naming import is_namedtuple, join, key_segment
from purestep._core.types import Tree

_FLOATING = {"float16", "bfloat16", "float32", "float64"}


class ArraySpec(NamedTuple):
    """The dtype and the shape of an array.

    Attributes:
        dtype: the name of its dtype, such as `float32`.
        shape: its shape.
    """

    dtype: str
    shape: tuple[int, ...]


class NodeSpec(NamedTuple):
    """A container, `None`, or a leaf that is not an array.

    Attributes:
        kind: `dict`, `list`, `tuple`, `namedtuple`, `none` or `other`.
        name: the name of its type, such as `dict`, `NoneType` or the class of a NamedTuple.
        children: pairs of a key and a spec. The key is a dict key, a field name or a position.
    """

    kind: str
    name: str
    children: tuple[tuple[Any, "Spec"], ...] = ()


Spec: TypeAlias = ArraySpec | NodeSpec
"""The description of a tree: immutable and hashable. Equal specs describe trees of the same structure."""


def spec(tree: Tree) -> Spec:
    """Describe a tree of arrays: its containers, keys, field names, dtypes and shapes.

    Two trees have the same structure if `differences(spec(a), spec(b))` is empty; the order of dict keys has
    no effect. `to_plain` converts a spec to lists for JSON or msgpack.

    >>> spec({"w": mx.zeros((2, 3))})
    NodeSpec(kind='dict', name='dict', children=(('w', ArraySpec(dtype='float32', shape=(2, 3))),))
    """
    if isinstance(tree, mx.array):
        return ArraySpec(dtype_name(tree.dtype), tree.shape)
    name = type(tree).__name__
    if tree is None:
        return NodeSpec("none", name)
    if type(tree) is dict:
        return NodeSpec("dict", name, tuple((key, spec(child)) for key, child in tree.items()))
    if is_namedtuple(tree):
        fields = zip(tree._fields, tree, strict=True)
        return NodeSpec("namedtuple", name, tuple((field, spec(child)) for field, child in fields))
    if type(tree) in (list, tuple):
        return NodeSpec(name, name, tuple((index, spec(child)) for index, child in enumerate(tree)))
    return NodeSpec("other", name)


@cache
def dtype_name(dtype: mx.Dtype) -> str:
    """Return the name of a dtype, such as `float32` for `mx.float32`."""
    return str(dtype).rsplit(".", 1)[-1]


def differences(
    got: Any, want: Any, got_name: str = "got", want_name: str = "want", *, cast: bool = False
) -> list[str]:
    """Return one line for each path at which two specs differ, or an empty list.

    Args:
        got: a spec, typed or plain.
        want: the spec to compare with.
        got_name: the name of the first tree in the lines.
        want_name: the name of the second.
        cast: treat floating-point arrays of different dtypes as equal.

    >>> differences(spec({"w": mx.zeros(2)}), spec({"w": mx.zeros(3)}))
    ['w has shape (2,) in got, (3,) in want']
    """
    return list(_differing("", _typed(got), _typed(want), got_name, want_name, cast))


def _differing(path: str, a: Spec, b: Spec, name_a: str, name_b: str, cast: bool) -> Iterator[str]:
    shown = path or "the tree"
    if isinstance(a, ArraySpec) and isinstance(b, ArraySpec):
        if a.shape != b.shape:
            yield f"{shown} has shape {a.shape} in {name_a}, {b.shape} in {name_b}"
        if a.dtype != b.dtype and not (cast and {a.dtype, b.dtype} <= _FLOATING):
            yield f"{shown} has dtype {a.dtype} in {name_a}, {b.dtype} in {name_b}"
    elif isinstance(a, ArraySpec) or isinstance(b, ArraySpec) or not _same_container(a, b):
        yield f"{shown} is {_describe(a)} in {name_a}, {_describe(b)} in {name_b}"
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


def _same_container(a: NodeSpec, b: NodeSpec) -> bool:
    return a.kind == b.kind and (a.kind != "namedtuple" or a.name == b.name)


def spec_items(spec: Any) -> list[tuple[str, ArraySpec]]:
    """Return the path and the `ArraySpec` of every array that a spec describes, in order.

    >>> spec_items(spec({"w": mx.zeros((2, 3))}))
    [('w', ArraySpec(dtype='float32', shape=(2, 3)))]
    """
    found: list[tuple[str, ArraySpec]] = []
    _collect("", spec, found)
    return found


def _collect(path: str, node: Any, found: list[tuple[str, ArraySpec]]) -> None:
    if isinstance(node, list) and node[0] == "array":
        node = ArraySpec(node[1], tuple(node[2]))
    if isinstance(node, ArraySpec):
        found.append((path, node))
        return
    for segment, child in spec_children(node):
        _collect(join(path, segment), child, found)


def spec_nodes(spec: Any, segments: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every node of a spec with the segments of its path; a container comes before its children.

    >>> [segments for segments, _ in spec_nodes(spec({"w": (None,)}))]
    [(), ('w',), ('w', '0')]
    """
    waiting = [(segments, spec)]
    while waiting:
        segments, node = waiting.pop()
        yield segments, node
        waiting += [((*segments, segment), child) for segment, child in reversed(spec_children(node))]


def spec_children(node: Any) -> list[tuple[str, Any]]:
    """Return a spec's (path segment, child) pairs; an empty list for an array or `None`.

    The children of a plain spec are plain.
    """
    if isinstance(node, list):
        return _plain_children(*node)
    if isinstance(node, ArraySpec):
        return []
    segment = key_segment if node.kind == "dict" else str
    return [(segment(key), child) for key, child in node.children]


def to_plain(spec: Spec) -> list[Any]:
    """Return a spec as lists, strings and integers: the form in which checkpoints store it.

    >>> to_plain(spec({"w": mx.zeros((2, 3)), "state": None}))
    ['dict', [['w', ['array', 'float32', [2, 3]]], ['state', ['none']]]]
    """
    if isinstance(spec, ArraySpec):
        return ["array", spec.dtype, list(spec.shape)]
    kind, name, children = spec
    if kind == "none":
        return ["none"]
    if kind == "other":
        return ["other", name]
    if kind in ("list", "tuple"):
        return [kind, [to_plain(child) for _, child in children]]
    named = [[key, to_plain(child)] for key, child in children]
    return ["namedtuple", name, named] if kind == "namedtuple" else ["dict", named]


def from_plain(plain: list[Any]) -> Spec:
    """Return the spec that `to_plain` converted. The lists are not checked.

    >>> from_plain(["tuple", [["none"]]])
    NodeSpec(kind='tuple', name='tuple', children=((0, NodeSpec(kind='none', name='NoneType', children=())),))
    """
    kind, *rest = plain
    if kind == "array":
        return ArraySpec(rest[0], tuple(rest[1]))
    if kind == "none":
        return NodeSpec("none", "NoneType")
    if kind == "other":
        return NodeSpec("other", rest[0])
    if kind in ("list", "tuple"):
        return NodeSpec(kind, kind, tuple((index, from_plain(child)) for index, child in enumerate(rest[0])))
    name = rest[0] if kind == "namedtuple" else kind
    return NodeSpec(kind, name, tuple((key, from_plain(child)) for key, child in rest[-1]))


def _plain_children(kind: str, *rest: Any) -> list[tuple[str, Any]]:
    if kind in ("list", "tuple"):
        return [(str(index), child) for index, child in enumerate(rest[0])]
    if kind == "dict":
        return [(key_segment(key), child) for key, child in rest[0]]
    return [(name, child) for name, child in rest[1]] if kind == "namedtuple" else []


def _typed(spec: Any) -> Spec:
    return from_plain(spec) if isinstance(spec, list) else spec


def _describe(node: Spec) -> str:
    if isinstance(node, ArraySpec):
        return f"an array of {node.dtype} {node.shape}"
    return "None" if node.kind == "none" else f"a {node.name}"
