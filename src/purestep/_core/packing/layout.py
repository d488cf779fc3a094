"""Trees of arrays as few vectors, and the way back.

A gradient of slices is one full-size array for each slice. So the arrays are cut from a vector by a function
whose gradient is one concatenation, and the gradient of that is one cut again.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import cuda, tree
from purestep._core.tracing.custom import custom_function, gradient_function, is_capturing, is_paused
from purestep._core.types import Tree


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
            split: Any = custom_function(partial(_views, vector))
            join: Any = gradient_function(partial(_joined, vector))
            split.vjp(partial(_split_gradient, vector, join))
            join.vjp(partial(_join_gradient, vector, split))
            split.vmap(partial(_mapped_split, vector, split))
            join.vmap(partial(_mapped_join, vector, join))
            self._split.append(split)
            self._join.append(join)

    def shapes_and_names(self) -> list[tuple[tuple[int, ...], str]]:
        """Return the shape of each array by its index, and the name of its vector."""
        found = {
            index: (shape, vector.name)
            for vector in self.vectors
            for index, shape in zip(vector.members, vector.shapes, strict=True)
        }
        return [found[index] for index in range(len(self.paths))]

    def unpack(self, values: Sequence[Any], *, differentiable: bool = True) -> Tree:
        """Return the tree whose arrays are views of the vectors; other values fill the places of a vector.

        Args:
            values: the vectors.
            differentiable: their gradient is one concatenation. Without it, 300 views take a twentieth of
                the time, 0.4 ms.
        """
        leaves: list[Any] = [None] * len(self.paths)
        for vector, split, value in zip(self.vectors, self._split, values, strict=True):
            if not isinstance(value, mx.array) or (value.shape == (0,) and vector.ends[-1]):
                found: Any = [value] * len(vector.members)
            elif value.ndim == 0 or value.shape[-1] != vector.ends[-1]:
                raise ValueError(
                    f"unpacked: {vector.name} must have shape ({vector.ends[-1]},), got {value.shape}"
                )
            else:
                own = differentiable and len(vector.members) > 1
                found = split(value) if own else _cut(vector, value)
            for index, leaf in zip(vector.members, found, strict=True):
                leaves[index] = leaf
        return tree.map(leaves.__getitem__, self.like)

    def pack(self, values: Tree, join: Callable[[list[Any]], mx.array] | None = None) -> list[Any]:
        """Return the vectors of a tree with the containers of `like`.

        Where all places of a vector hold `()`, or all hold an empty array, so does the vector.

        Args:
            values: the tree.
            join: makes a vector from its arrays, in place of the function that has a gradient.
        """
        leaves: list[Any] = []
        _gather(self.like, values, "", leaves)
        found = []
        for vector, own in zip(self.vectors, self._join, strict=True):
            members = [leaves[index] for index in vector.members]
            if all(map(_is_nothing, members)) and vector.ends[-1]:
                found.append(members[0])
                continue
            leading = self._leading(vector, members)
            if join is not None:
                found.append(join(members))
            elif len(members) == 1:
                found.append(members[0].reshape((*leading, vector.ends[-1])))
            else:
                found.append(own(*members))
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
    if len(vector.ends) == 1:
        pieces = [array]
    else:  # mx.compile and export fail on two equal mx.split, such as those of a loss and of its transform
        pieces = [array[..., begin:end] for begin, end in pairwise((0, *vector.ends))]
    return tuple(
        piece.reshape((*leading, *shape)) for piece, shape in zip(pieces, vector.shapes, strict=True)
    )


def _views(vector: Vector, array: mx.array) -> tuple[mx.array, ...]:
    """Return `_cut`; in a compiled step on CUDA one operation makes each array, which saves host time."""
    if array.ndim > 1 or is_capturing() or not cuda.usable():
        return _cut(vector, array)
    array = mx.contiguous(array)  # MLX refuses views of others
    return tuple(
        mx.as_strided(array, shape, _strides(shape), end - prod(shape))
        for shape, end in zip(vector.shapes, vector.ends, strict=True)
    )


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _joined(vector: Vector, *arrays: mx.array) -> mx.array:
    leading = arrays[0].shape[: arrays[0].ndim - len(vector.shapes[0])]
    if not leading and cuda.serves(arrays):
        return cuda.joined(arrays)
    sizes = [end - begin for begin, end in pairwise((0, *vector.ends))]
    flat = [array.reshape((*leading, size)) for array, size in zip(arrays, sizes, strict=True)]
    return mx.concatenate(flat, axis=-1)


# A capture computes the gradient of each call at once: that of the gradient too, without an end.
def _split_gradient(vector: Vector, join: Any, primals: Any, cotangents: Any, outputs: Any) -> mx.array:
    return _joined(vector, *cotangents) if is_capturing() else join(*cotangents)


def _join_gradient(vector: Vector, split: Any, primals: Any, cotangent: Any, output: Any) -> list[mx.array]:
    return list(_cut(vector, cotangent) if is_capturing() else split(cotangent))


def _mapped_split(vector: Vector, split: Any, array: mx.array, axis: int) -> tuple[list[mx.array], list[int]]:
    array = mx.moveaxis(array, axis, 0)
    # A captured graph must show operations, and the gradient is taken before: it needs none of its own.
    found = _cut(vector, array) if is_paused() else split(array)
    return list(found), [0] * len(found)


def _mapped_join(vector: Vector, join: Any, arrays: Any, axes: Any) -> tuple[mx.array, int]:
    count = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    moved = [
        mx.broadcast_to(array, (count, *array.shape)) if axis is None else mx.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, axes, strict=True)
    ]
    return (_joined(vector, *moved) if is_paused() else join(*moved)), 0


def _gather(like: Any, node: Any, path: str, found: list[Any]) -> None:
    """Collect what a tree holds at the places of a layout, by index."""
    if not found:
        found.extend([None] * len(tree.leaves(like)))
    if type(like) is int:
        found[like] = node
        return
    below, given = tree.children(like) or [], dict(tree.children(node) or [])
    if type(node) is not type(like) or given.keys() != {segment for segment, _ in below}:
        raise ValueError(f"packed: {path or 'the tree'} is not built as in the layout, got {shown(node)}")
    for segment, child in below:
        _gather(child, given[segment], tree.join(path, segment), found)


def shown(node: Any) -> str:
    """Return a node of a tree in words."""
    below = tree.children(node)
    if below is None:
        return f"a leaf, {type(node).__name__}"
    return f"a {type(node).__name__} of ({', '.join(segment for segment, _ in below[:6])})"
