"""Vectors of which each process holds a part."""

from collections import namedtuple
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from purestep._core import tree
from purestep._core.packing.layout import Layout
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
                "such as Muon, LARS and Adafactor, can be used with data_parallel. If this is a checkpoint, "
                "pass ps.parallel.gathered(state)"
            )
        leaves: list[Any] = [None] * len(self.paths)
        for vector, value in zip(self.vectors, values, strict=True):
            for index, shape in zip(vector.members, vector.shapes, strict=True):
                alone = isinstance(value, mx.array)
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


def holds_shard(value: Tree) -> bool:
    """Return whether a tree has a `Shard` among its containers."""
    if isinstance(value, Shard):
        return True
    below = tree.children(value)
    return below is not None and any(holds_shard(child) for _, child in below)


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
