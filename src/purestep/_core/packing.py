"""Trees of arrays as few vectors, and the way back.

A gradient of slices is one full-size array for each slice. So the arrays are cut from a vector by a function
whose gradient is one concatenation, and the gradient of that is one cut again.
"""

import threading
import zlib
from collections import namedtuple
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, cuda, tree
from purestep._core.tracing.custom import custom_function
from purestep._core.types import Tree

_ALIGNED = 256  # elements; arrays whose size is a multiple of this come first


class Vector(NamedTuple):
    """Some arrays of a tree, one after another.

    Attributes:
        name: its field in the `Packed`.
        members: the indices of the arrays in `Layout.paths`.
        shapes: their shapes.
        ends: where each one ends in the vector.
    """

    name: str
    members: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]


class Layout:
    """The place of each array of a tree in the vectors.

    Attributes:
        like: the tree with the index of each array in its place.
        paths: the path of each array.
        vectors: the vectors, in the order of the fields.
    """

    def __init__(self, like: Tree, paths: tuple[str, ...], vectors: tuple[Vector, ...]):
        self.like, self.paths, self.vectors = like, paths, vectors
        self._split, self._join = [], []
        for vector in vectors:
            split: Any = custom_function(partial(_cut, vector))
            join: Any = custom_function(partial(_joined, vector))
            split.vjp(partial(_split_gradient, join))
            join.vjp(partial(_join_gradient, split))
            split.vmap(partial(_mapped_split, split))
            join.vmap(partial(_mapped_join, join))
            self._split.append(split)
            self._join.append(join)

    def unpack(self, values: Sequence[Any]) -> Tree:
        """Return the tree whose arrays are views of the vectors; other values fill the places of a vector."""
        leaves: list[Any] = [None] * len(self.paths)
        for vector, split, value in zip(self.vectors, self._split, values, strict=True):
            if not isinstance(value, mx.array) or (value.shape == (0,) and vector.ends[-1]):
                found: Any = [value] * len(vector.members)
            elif value.ndim == 0 or value.shape[-1] != vector.ends[-1]:
                raise ValueError(
                    f"unpacked: {vector.name} must have shape ({vector.ends[-1]},), got {value.shape}"
                )
            else:
                found = split(value) if len(vector.members) > 1 else _cut(vector, value)
            for index, leaf in zip(vector.members, found, strict=True):
                leaves[index] = leaf
        return tree.map(leaves.__getitem__, self.like)

    def pack(self, values: Tree) -> list[Any]:
        """Return the vectors of a tree with the containers of `like`.

        Where all places of a vector hold `()`, or all hold an empty array, so does the vector.
        """
        leaves: list[Any] = []
        _gather(self.like, values, "", leaves)
        found = []
        for vector, join in zip(self.vectors, self._join, strict=True):
            members = [leaves[index] for index in vector.members]
            if all(map(_is_nothing, members)) and vector.ends[-1]:
                found.append(members[0])
                continue
            leading = self._leading(vector, members)
            alone = len(members) == 1
            found.append(members[0].reshape((*leading, vector.ends[-1])) if alone else join(*members))
        return found

    def uniform(self, tree_of_values: Tree) -> list[Any]:
        """Return the value of each vector, from those of the arrays; refuse values that differ within one."""
        values: list[Any] = []
        _gather(self.like, tree_of_values, "", values)
        found = []
        for vector in self.vectors:
            first = vector.members[0]
            for index in vector.members:
                if values[index] != values[first]:
                    raise ValueError(
                        f"{values[first]!r} for {self.paths[first]} and {values[index]!r} for "
                        f"{self.paths[index]}, which share the vector {vector.name}"
                    )
            found.append(values[first])
        return found

    def _leading(self, vector: Vector, members: list[Any]) -> tuple[int, ...]:
        """Return the axes before those of the layout, as of a stack of trees; refuse other shapes."""
        leading: tuple[int, ...] | None = None
        for index, shape, member in zip(vector.members, vector.shapes, members, strict=True):
            path = self.paths[index] or "the tree"
            if not isinstance(member, mx.array):
                raise ValueError(f"packed: {path} must be an array, got {type(member).__name__}")
            front = member.shape[: max(member.ndim - len(shape), 0)]
            leading = front if leading is None else leading
            if member.shape != (*leading, *shape):
                raise ValueError(
                    f"packed: {path} must have shape {shape}, as in the layout, got {member.shape}"
                )
        return leading or ()


def _is_nothing(member: Any) -> bool:
    """Tell whether a mask left a member out, or a transform keeps nothing for it: `()` or an empty array."""
    return type(member) is tuple if not isinstance(member, mx.array) else member.shape == (0,)


def _cut(vector: Vector, array: mx.array) -> tuple[mx.array, ...]:
    leading = array.shape[:-1]
    pieces = mx.split(array, list(vector.ends[:-1]), axis=-1) if len(vector.ends) > 1 else [array]
    return tuple(
        piece.reshape((*leading, *shape)) for piece, shape in zip(pieces, vector.shapes, strict=True)
    )


def _joined(vector: Vector, *arrays: mx.array) -> mx.array:
    leading = arrays[0].shape[: arrays[0].ndim - len(vector.shapes[0])]
    if not leading and cuda.serves(arrays):
        return cuda.joined(arrays)
    sizes = [end - begin for begin, end in pairwise((0, *vector.ends))]
    flat = [array.reshape((*leading, size)) for array, size in zip(arrays, sizes, strict=True)]
    return mx.concatenate(flat, axis=-1)


def _split_gradient(join: Any, primals: Any, cotangents: Any, outputs: Any) -> mx.array:
    return join(*cotangents)


def _join_gradient(split: Any, primals: Any, cotangent: Any, output: Any) -> list[mx.array]:
    return list(split(cotangent))


def _mapped_split(split: Any, array: mx.array, axis: int) -> tuple[list[mx.array], list[int]]:
    found = split(mx.moveaxis(array, axis, 0))
    return list(found), [0] * len(found)


def _mapped_join(join: Any, arrays: Any, axes: Any) -> tuple[mx.array, int]:
    count = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    moved = [
        mx.broadcast_to(array, (count, *array.shape)) if axis is None else mx.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, axes, strict=True)
    ]
    return join(*moved), 0


class Packed(tuple):
    """A tree of arrays as few vectors; `ps.packed` makes one, and `ps.unpacked` gives the tree back.

    Each layout has a class of its own, a NamedTuple with a field for each vector.
    """

    __slots__ = ()
    layout: Layout
    _fields: tuple[str, ...]
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


def _gather(like: Any, node: Any, path: str, found: list[Any]) -> None:
    """Collect what a tree holds at the places of a layout, by index."""
    if not found:
        found.extend([None] * len(tree.leaves(like)))
    if type(like) is int:
        found[like] = node
        return
    below, given = tree.children(like) or [], dict(tree.children(node) or [])
    if type(node) is not type(like) or given.keys() != {segment for segment, _ in below}:
        raise ValueError(f"packed: {path or 'the tree'} is not built as in the layout, got {_shown(node)}")
    for segment, child in below:
        _gather(child, given[segment], tree.join(path, segment), found)


def _shown(node: Any) -> str:
    below = tree.children(node)
    if below is None:
        return f"a leaf, {type(node).__name__}"
    return f"a {type(node).__name__} of ({', '.join(segment for segment, _ in below[:6])})"


def holds_packed(value: Tree) -> bool:
    """Tell whether a tree has a `Packed` among its containers."""
    if isinstance(value, Packed):
        return True
    if type(value) is dict:
        return any(map(holds_packed, value.values()))
    return (type(value) is list or isinstance(value, tuple)) and any(map(holds_packed, value))


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


def _unpacked(node: Any) -> Any:
    if isinstance(node, Packed):
        return node.layout.unpack(node)
    if type(node) is dict:
        return {key: _unpacked(child) for key, child in node.items()}
    if type(node) is list or isinstance(node, tuple):
        return _rebuilt(node, [_unpacked(child) for child in node])
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
        raise ValueError(f"{path or 'the tree'} is {_shown(value)} in place of {_shown(like)}")
    return [(given[segment], child) for segment, child in below]


def _rebuilt(like: Any, children: list[Any]) -> Any:
    if type(like) is dict:
        return dict(zip(like, children, strict=True))
    return type(like)(*children) if tree.is_namedtuple(like) else type(like)(children)
