"""Trees with vectors in them, and the same trees as the model has them."""

import threading
import zlib
from collections import namedtuple
from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.packing.layout import Layout, Vector, shown
from purestep._core.types import Tree

_ALIGNED = 256  # elements; arrays whose size is a multiple of this come first


class Packed(tuple):
    """A tree of arrays as few vectors; `ps.packed` makes one, and `ps.unpacked` gives the tree back.

    Each layout has a class of its own, a NamedTuple with a field for each vector.

    >>> import purestep as ps
    >>> isinstance(ps.packed({"w": mx.ones((2, 3))}), Packed)
    True
    """

    __slots__ = ()
    layout: Layout
    _fields: tuple[str, ...]

    def __reduce__(self) -> Any:
        # The class is not an attribute of a module; a process that has not made the layout makes it.
        return _loaded, (self.layout.like, self.layout.shapes_and_names(), tuple(self))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> mx.array: ...


_classes: dict[Any, type[Packed]] = {}
_lock = threading.Lock()


def class_for(like: Tree, names: Sequence[str]) -> type[Packed]:
    """Return the class of trees with these containers and shapes; the same one for the same arguments.

    Args:
        like: a tree of arrays.
        names: the name of the vector of each array, in the order of `tree.items`.
    """
    found = tree.items(like)
    order = sorted(range(len(found)), key=lambda index: found[index][0])
    places = tuple((found[index][0], tuple(found[index][1].shape), names[index]) for index in order)
    key = (_containers(like), places)
    with _lock:
        if key not in _classes:
            indices = dict(zip((path for path, _, _ in places), range(len(places)), strict=True))
            skeleton = tree.map_with_path(lambda path, _: indices[path], like)
            vectors = [_vector(name, places) for name in dict.fromkeys(sorted(names))]
            layout = Layout(skeleton, tuple(indices), tuple(vectors))
            # Layouts that differ have names that differ, so that specs differ too.
            name = f"Packed_{zlib.crc32(repr(key).encode()):08x}"
            fields: Any = namedtuple(name, [vector.name for vector in vectors])
            _classes[key] = type(name, (fields, Packed), {"__slots__": (), "layout": layout})
        return _classes[key]


def _loaded(like: Tree, places: list[tuple[tuple[int, ...], str]], values: tuple[Any, ...]) -> Packed:
    """Return the vectors that `pickle` has stored."""
    shapes = tree.map(lambda index: _Shape(places[index][0]), like)
    return class_for(shapes, [places[index][1] for index in tree.leaves(like)])(*values)


class _Shape:
    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape


def known_classes() -> list[type[Packed]]:
    """Return the classes of all layouts that this process has made."""
    with _lock:
        return list(_classes.values())


def _vector(name: str, places: tuple[tuple[str, tuple[int, ...], str], ...]) -> Vector:
    # Multiples of many elements come first: every array then begins at a multiple of its own divisor.
    members = [index for index, (_, _, own) in enumerate(places) if own == name]
    members.sort(key=lambda index: -_divisor(prod(places[index][1])))
    shapes = tuple(places[index][1] for index in members)
    return Vector(name, tuple(members), shapes, tuple(accumulate(map(prod, shapes))))


def _divisor(size: int) -> int:
    """Return the largest power of two that divides a size, at most 256."""
    return min(size & -size, _ALIGNED) if size else _ALIGNED


def _containers(node: Any) -> Any:
    """Return a hashable description of the containers, the same for dicts in any order."""
    below = tree.children(node)
    if below is None:
        return ()
    children = [(segment, _containers(child)) for segment, child in below]
    return type(node), tuple(sorted(children) if type(node) is dict else children)


def holds_packed(value: Tree) -> bool:
    """Tell whether a tree has a `Packed` among its containers."""
    kind = type(value)
    if kind is dict:
        value = value.values()
    elif isinstance(value, Packed):
        return True
    elif kind is not list and not isinstance(value, tuple):
        return False
    for child in value:  # noqa: SIM110  (a generator takes twice as long)
        if type(child) is not mx.array and holds_packed(child):
            return True
    return False


def unpacked(value: Tree) -> Tree:
    """Return a tree with the model's own trees in place of each `Packed`.

    The arrays are views of the vectors, and nothing is copied. The gradient of the vectors is one
    concatenation. A tree without a `Packed` is returned as it is.

    Args:
        value: the result of `ps.packed`, a `TrainState`, or any tree.

    >>> import purestep as ps
    >>> params = ps.packed({"w": mx.ones((2, 3)), "b": mx.zeros(3)})
    >>> ps.unpacked(params)["b"]
    array([0, 0, 0], dtype=float32)
    """
    return _unpacked(value) if holds_packed(value) else value


def viewed(value: Tree) -> Tree:
    """Return `unpacked(value)` for reading shapes or values: the gradient of its arrays is slow."""
    return _unpacked(value, differentiable=False) if holds_packed(value) else value


def _unpacked(node: Any, *, differentiable: bool = True) -> Any:
    if isinstance(node, Packed):
        return node.layout.unpack(node, differentiable=differentiable)
    if type(node) is dict:
        return {key: _unpacked(child, differentiable=differentiable) for key, child in node.items()}
    if type(node) is list or isinstance(node, tuple):
        return _rebuilt(node, [_unpacked(child, differentiable=differentiable) for child in node])
    return node


def uniform(value: Tree, like: Tree) -> Tree:
    """Return a tree like `like`, with one value for each vector, from values for the model's own tree.

    Raises:
        ValueError: with two paths that share a vector and have different values.
    """
    if isinstance(like, Packed):
        return type(like)(*like.layout.uniform(value))
    if not holds_packed(like):
        return value
    return _rebuilt(like, [uniform(a, b) for a, b in _pairs(value, like, "")])


def packed_like(caller: str, value: Tree, like: Tree) -> Tree:
    """Return a tree of own trees with vectors wherever `like` has a `Packed`.

    Raises:
        ValueError: if the tree is built otherwise, with the path.
    """
    if not holds_packed(like):
        return value
    try:
        return _packed_like(value, like, "")
    except ValueError as error:
        raise checks.error(caller, str(error).removeprefix("packed: ")) from None


def _packed_like(value: Any, like: Any, path: str) -> Any:
    if isinstance(like, Packed):
        return value if type(value) is type(like) else type(like)(*like.layout.pack(value))
    if not holds_packed(like):
        return value
    segments = [segment for segment, _ in tree.children(like) or []]
    pairs = zip(segments, _pairs(value, like, path), strict=True)
    return _rebuilt(like, [_packed_like(a, b, tree.join(path, segment)) for segment, (a, b) in pairs])


def _pairs(value: Any, like: Any, path: str) -> list[tuple[Any, Any]]:
    """Return the children of two containers in pairs; refuse containers that differ."""
    below, given = tree.children(like) or [], dict(tree.children(value) or [])
    if type(value) is not type(like) or given.keys() != {segment for segment, _ in below}:
        raise ValueError(f"{path or 'the tree'} is {shown(value)} in place of {shown(like)}")
    return [(given[segment], child) for segment, child in below]


def _rebuilt(like: Any, children: list[Any]) -> Any:
    if type(like) is dict:
        return dict(zip(like, children, strict=True))
    return type(like)(*children) if tree.is_namedtuple(like) else type(like)(children)
