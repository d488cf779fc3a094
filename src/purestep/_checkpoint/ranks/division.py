"""What each rank stores of a state that is divided over ranks: plain data, the same on every rank."""

from collections.abc import Iterator
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.disk.pieces import Piece
from purestep._checkpoint.format import names
from purestep._core import checks, tree
from purestep._core.packing import Packed, Shard, is_marker, part_size, shards_in
from purestep._core.packing.layout import Vector
from purestep._core.types import Tree

_PARAMS = "params."


class Stored(NamedTuple):
    """One array of a file: a whole array of the state, or a piece of one.

    Attributes:
        path: of the array in the state.
        key: its name in the file.
        stem: of the name of the file.
        dtype: the name of its dtype.
        shape: its shape in the file; a piece is flat.
        source: the array or vector that has its elements; only on the rank that writes it.
        start: the first of its elements in the source.
        number: of the piece, from 0.
    """

    path: str
    key: str
    stem: str
    dtype: str
    shape: tuple[int, ...]
    source: mx.array
    start: int
    number: int = 0

    @property
    def nbytes(self) -> int:
        """Return its size in bytes."""
        return prod(self.shape) * self.source.dtype.size


class Member(NamedTuple):
    """The place of one array in a vector: from the element `start` to before `stop`."""

    path: str
    shape: tuple[int, ...]
    start: int
    stop: int


def check_parts(caller: str, name: str, state: Tree, count: int) -> bool:
    """Return whether a state has parts of vectors; refuse parts for another number of ranks.

    Raises:
        ValueError: with the path.
    """
    found = list(shards_in(state))
    for path, shard in found:
        if shard.count != count:
            raise checks.error(
                caller, f"{name} has the parts of {shard.count} ranks in {path}, got a group of {count}"
            )
        for value, vector in zip(shard, shard.layout.vectors, strict=True):
            size = (part_size(vector.ends[-1], count),)
            if isinstance(value, mx.array) and value.shape != size and not is_marker(value, vector):
                shown = tree.join(path, vector.name)
                raise checks.error(caller, f"{name} must have {size} in {shown}, got {value.shape}")
    return bool(found)


def members(path: str, packed: Packed, vector: Vector) -> list[Member]:
    """Return the arrays of a vector, in their order; `path` is that of the `Packed`."""
    return [
        Member(tree.join(path, packed.layout.paths[index]), shape, start, stop)
        for index, shape, (start, stop) in zip(
            vector.members, vector.shapes, pairwise((0, *vector.ends)), strict=True
        )
    ]


def pieces_of(member: Member, size: int) -> list[Piece]:
    """Return the pieces of an array in parts of `size` elements; one piece if it lies in one part.

    >>> pieces_of(Member("w", (5,), 2, 7), 4)
    [Piece(name='w.00001-of-00002', start=0, stop=2), Piece(name='w.00002-of-00002', start=2, stop=5)]
    """
    start, stop = member.start, member.stop
    if start == stop:
        return [Piece(member.path, 0, 0)]
    first, last = start // size, (stop - 1) // size
    if first == last:
        return [Piece(member.path, 0, stop - start)]
    bounds = [start, *(size * part for part in range(first + 1, last + 1)), stop]
    return [
        Piece(names.piece(member.path, number + 1, last - first + 1), a - start, b - start)
        for number, (a, b) in enumerate(pairwise(bounds))
    ]


def division(state: Tree, count: int) -> list[list[Stored]]:
    """Return what each rank stores: its part of each vector, and rank 0 all that is not divided."""
    found: list[list[Stored]] = [[] for _ in range(count)]
    for rank, stored in _walk(state, "", count):
        found[rank].append(stored)
    return found


def _walk(node: Any, path: str, count: int) -> Iterator[tuple[int, Stored]]:
    if isinstance(node, mx.array):
        yield 0, _whole(path, node, node.shape, 0)
    elif isinstance(node, Packed):
        for value, vector in zip(node, node.layout.vectors, strict=True):
            if not isinstance(value, mx.array):
                continue
            for member in members(path, node, vector):
                if is_marker(value, vector):
                    yield 0, _whole(member.path, value, (0,), 0)
                elif isinstance(node, Shard):
                    yield from _divided(member, value, part_size(vector.ends[-1], count))
                else:
                    yield 0, _whole(member.path, value, member.shape, member.start)
    else:
        for segment, child in tree.children(node) or []:
            yield from _walk(child, tree.join(path, segment), count)


def _whole(path: str, source: mx.array, shape: tuple[int, ...], start: int) -> Stored:
    own = path.startswith(_PARAMS)  # parameters are stored under the model's own names
    stem, key = ("model", path.removeprefix(_PARAMS)) if own else ("state", path)
    return Stored(path, key, stem, tree.dtype_name(source.dtype), shape, source, start)


def _divided(member: Member, part: mx.array, size: int) -> Iterator[tuple[int, Stored]]:
    """Yield an array whole, or its pieces, each with the rank that stores it."""
    dtype = tree.dtype_name(part.dtype)
    found = pieces_of(member, size)
    for number, piece in enumerate(found):
        start = member.start + piece.start
        rank = start // size if size and piece.stop > piece.start else 0
        shape = member.shape if len(found) == 1 else (piece.stop - piece.start,)
        offset = start - rank * size if shape and 0 not in shape or not shape else 0
        yield rank, Stored(member.path, piece.name, "state", dtype, shape, part, offset, number)
