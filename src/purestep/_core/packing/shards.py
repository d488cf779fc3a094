"""Vectors of which each process holds a part."""

from collections import namedtuple
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx

from purestep._core import tree
from purestep._core.packing.layout import Layout, Vector
from purestep._core.packing.trees import Packed
from purestep._core.types import Tree


class ShardLayout(Layout):
    """The layout of a tree whose vectors are elsewhere in part: it cannot be unpacked."""

    def __init__(self, whole: Layout):
        super().__init__(whole.like, whole.paths, whole.vectors)

    def unpack(self, values: Sequence[Any], *, differentiable: bool = True) -> Tree:
        """Return arrays of the right shapes and dtypes, without the values, for masks; refuse otherwise."""
        if differentiable:
            raise ValueError(
                "sharded: transform must treat all elements alike, such as Adam, Lion and clipping by the "
                "global norm, because each rank holds a part of each array; one that needs whole arrays, "
                "such as Muon, LARS and Adafactor, can be used with data_parallel. To store a state, call "
                "save of a ps.checkpoint.Checkpointer on every rank, or pass ps.parallel.gathered(state)"
            )
        leaves: list[Any] = [None] * len(self.paths)
        for vector, value in zip(self.vectors, values, strict=True):
            for index, shape in zip(vector.members, vector.shapes, strict=True):
                alone = isinstance(value, mx.array) and not is_marker(value, vector)
                leaves[index] = mx.broadcast_to(mx.array(0, value.dtype), shape) if alone else value
        return tree.map(leaves.__getitem__, self.like)

    def pack(self, values: Tree) -> list[Any]:
        """Refuse: the arrays of a tree are whole."""
        return self.unpack(())


class Shard(Packed):
    """A `Packed` with the part of one process in place of each vector.

    Attributes:
        whole: the class of the whole vectors.
        count: the number of processes.
    """

    __slots__ = ()
    whole: type[Packed]
    count: int


_classes: dict[tuple[type[Packed], int], type[Shard]] = {}


def shard_class(whole: type[Packed], count: int) -> type[Shard]:
    """Return the class of the parts of these vectors; the same one for the same arguments."""
    if (whole, count) not in _classes:
        name = whole.__name__.replace("Packed", f"Shard{count}")
        fields: Any = namedtuple(name, whole._fields)
        attributes = {"__slots__": (), "layout": ShardLayout(whole.layout), "whole": whole, "count": count}
        _classes[whole, count] = type(name, (fields, Shard), attributes)
    return _classes[whole, count]


def is_marker(value: Any, vector: Vector) -> bool:
    """Tell whether a vector is an empty array, by which a transform keeps nothing for its members."""
    return isinstance(value, mx.array) and value.shape == (0,) and vector.ends[-1] > 0


def shards_in(node: Any, path: str = "") -> Iterator[tuple[str, Shard]]:
    """Yield the path and the `Shard` of each in a tree."""
    if isinstance(node, Shard):
        yield path, node
        return
    for segment, child in tree.children(node) or []:
        yield from shards_in(child, tree.join(path, segment))


def part_size(size: int, count: int) -> int:
    """Return the number of elements of a vector that each process holds; the last part may have zeros."""
    return -(-size // count)


def part(vector: mx.array, rank: int, count: int) -> mx.array:
    """Return the part of a vector that one process holds."""
    size = part_size(vector.size, count)
    return padded(vector, count)[rank * size : (rank + 1) * size]


def padded(vector: mx.array, count: int) -> mx.array:
    """Return a vector with zeros at its end, so that it has parts of equal size."""
    missing = part_size(vector.size, count) * count - vector.size
    return mx.pad(vector, (0, missing)) if missing else vector
