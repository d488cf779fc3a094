"""What each rank stores of a state that is divided over ranks: plain data, the same on every rank."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.disk.pieces import Piece
from purestep._checkpoint.format import names
from purestep._checkpoint.format.specs import nbytes
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
        source: the place of the array or vector that has its elements, in a list beside.
        start: the first of its elements in the source.
        number: of the piece, from 0.
    """

    path: str
    key: str
    stem: str
    dtype: str
    shape: tuple[int, ...]
    source: int
    start: int
    number: int = 0

    @property
    def nbytes(self) -> int:
        """Return its size in bytes."""
        return nbytes(self.dtype, self.shape)


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


def division(state: Tree, count: int) -> tuple[list[list[Stored]], list[mx.array]]:
    """Return what each rank stores, and the arrays and vectors of this rank that have the elements.

    Each rank stores its part of each vector, and rank 0 all that is not divided.
    """
    found: list[list[Stored]] = [[] for _ in range(count)]
    sources: list[mx.array] = []
    _divide(state, "", count, found, sources)
    return found, sources


def _divide(node: Any, path: str, count: int, found: list[list[Stored]], sources: list[mx.array]) -> None:
    if isinstance(node, mx.array):
        sources.append(node)
        found[0].append(_whole(path, node, node.shape, len(sources) - 1, 0))
    elif isinstance(node, Packed):
        for value, vector in zip(node, node.layout.vectors, strict=True):
            if not isinstance(value, mx.array):
                continue
            sources.append(value)
            source = len(sources) - 1
            for member in members(path, node, vector):
                if is_marker(value, vector):
                    found[0].append(_whole(member.path, value, (0,), source, 0))
                elif not isinstance(node, Shard):
                    found[0].append(_whole(member.path, value, member.shape, source, member.start))
                else:
                    for rank, entry in _parts(member, value, source, part_size(vector.ends[-1], count)):
                        found[rank].append(entry)
    else:
        for segment, child in tree.children(node) or []:
            _divide(child, tree.join(path, segment), count, found, sources)


def _whole(path: str, array: mx.array, shape: tuple[int, ...], source: int, start: int) -> Stored:
    own = path.startswith(_PARAMS)  # parameters are stored under the model's own names
    stem, key = ("model", path.removeprefix(_PARAMS)) if own else ("state", path)
    return Stored(path, key, stem, tree.dtype_name(array.dtype), shape, source, start)


def _parts(member: Member, part: mx.array, source: int, size: int) -> Iterator[tuple[int, Stored]]:
    """Yield an array whole, or its pieces, each with the rank that stores it."""
    found = pieces_of(member, size)
    for number, piece in enumerate(found):
        shape = member.shape if len(found) == 1 else (piece.stop - piece.start,)
        rank, start = divmod(member.start + piece.start, size) if piece.stop else (0, 0)
        dtype = tree.dtype_name(part.dtype)
        yield rank, Stored(member.path, piece.name, "state", dtype, shape, source, start, number)
