"""A stored state before its arrays are read."""

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import mlx.core as mx

from purestep._checkpoint.disk.pieces import Pieces
from purestep._checkpoint.format.specs import Leaves
from purestep._core import tree


class StoredTree(NamedTuple):
    """A stored state before its arrays are read: its structure, and the function that reads them.

    Attributes:
        source: its name in errors.
        tree: its `tree.spec`.
        leaves: dtype and shape of each array by path.
        read: a function from a list of paths, or names of pieces, to the verified arrays, in memory.
        pieces: the pieces of each array that lies in several.
    """

    source: str
    tree: tree.Spec
    leaves: Leaves
    read: Callable[[list[str]], dict[str, mx.array]]
    pieces: Pieces = MappingProxyType({})
