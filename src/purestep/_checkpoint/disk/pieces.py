"""Arrays that lie in several pieces, in one file or in several."""

from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from math import prod
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.disk.reader import Place
from purestep._checkpoint.format import names
from purestep._checkpoint.format.specs import Leaves
from purestep._core import tree


class Piece(NamedTuple):
    """A flat piece of an array.

    Attributes:
        name: in its file.
        start: the first of its elements in the array.
        stop: the element after its last.
    """

    name: str
    start: int
    stop: int


Pieces = Mapping[str, tuple[Piece, ...]]
"""The pieces of each array that lies in several, by path."""


def in_pieces(leaves: Leaves, places: dict[str, Place], further: Any) -> tuple[Pieces, Leaves]:
    """Return the pieces of arrays, and the dtype and shape of all arrays and pieces in files.

    The place of such an array in `leaves` is that of its first piece. `places` gets those of all pieces in
    place of those of the arrays.

    Args:
        leaves: dtype and shape of each array by path.
        places: of each array.
        further: by path, `[file, name, checksum, number of elements]` of each piece after the first.

    Raises:
        LookupError, TypeError, ValueError: if the pieces do not make up the arrays.
    """
    pieces: dict[str, tuple[Piece, ...]] = {}
    stored = dict(leaves)
    for path, others in further.items():
        dtype, shape = stored.pop(path)
        held = [places.pop(path), *(Place(*map(_text, place)) for *place, _ in others)]
        lengths = [_length(length) for *_, length in others]
        lengths.insert(0, prod(shape) - sum(lengths))
        ends = [0, *accumulate(lengths)]
        if min(lengths) < 1:
            raise ValueError
        found = [
            Piece(names.piece(path, number, len(held)), *bounds)
            for number, bounds in enumerate(pairwise(ends), start=1)
        ]
        pieces[path] = tuple(found)
        for each, place in zip(found, held, strict=True):
            if place.key != each.name:
                raise ValueError
            places[each.name] = place
            stored[each.name] = tree.ArraySpec(dtype, (each.stop - each.start,))
    return pieces, stored


def read_joined(
    read: Callable[[list[str]], dict[str, mx.array]], leaves: Leaves, pieces: Pieces, paths: list[str]
) -> dict[str, mx.array]:
    """Return arrays by path, those in pieces whole. Beside them, one array is in memory twice.

    Args:
        read: returns arrays and pieces by name.
        leaves: dtype and shape of each array.
        pieces: of arrays.
        paths: of arrays, or names of pieces.
    """
    found = read([name for path in paths for name in _names(pieces, path)])
    for path in paths:
        if path in pieces:
            joined = mx.concatenate([found.pop(name) for name in _names(pieces, path)])
            found[path] = joined.reshape(leaves[path].shape)
            mx.eval(found[path])
    return {path: found[path] for path in paths}


def _names(pieces: Pieces, path: str) -> list[str]:
    return [piece.name for piece in pieces[path]] if path in pieces else [path]


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _length(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise TypeError
    return value
