"""Arrays that lie in several pieces, in one file or in several."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import mlx.core as mx

from purestep._checkpoint.format.specs import Leaves


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
    names = [name for path in paths for name in _names(pieces, path)]
    found = read(names)
    for path in paths:
        if path in pieces:
            joined = mx.concatenate([found.pop(name) for name in _names(pieces, path)])
            found[path] = joined.reshape(leaves[path].shape)
            mx.eval(found[path])
    return {path: found[path] for path in paths}


def _names(pieces: Pieces, path: str) -> list[str]:
    return [piece.name for piece in pieces[path]] if path in pieces else [path]
