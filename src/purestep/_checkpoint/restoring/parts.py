"""Restore the parts of vectors that one rank holds, of whatever arrays and pieces a file has."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.disk.pieces import Piece
from purestep._checkpoint.format.specs import nbytes
from purestep._checkpoint.ranks.division import Member, members
from purestep._checkpoint.restoring.stored import StoredTree
from purestep._core import tree
from purestep._core.packing import Packed, Shard, is_marker, part_size
from purestep._core.types import Tree

_TOGETHER = 64 << 20  # bytes of arrays that are read together


class _Wanted(NamedTuple):
    """Elements of a vector: those of a stored array or piece, or of the template if it has no name."""

    name: str
    start: int  # in the stored array or piece, or in the part of the template
    stop: int
    nbytes: int  # of all that is read


def member_paths(path: str, shard: Shard) -> Iterator[str]:
    """Yield the path of each array of a `Shard` at a path."""
    for value, vector in zip(shard, shard.layout.vectors, strict=True):
        if isinstance(value, mx.array):
            yield from (member.path for member in members(path, shard, vector))


def without_parts(node: Any) -> Tree:
    """Return a tree with an empty tuple in place of each `Shard`."""
    if isinstance(node, Shard):
        return ()
    below = tree.children(node)
    if not below or isinstance(node, Packed):
        return node
    return _rebuilt(node, [without_parts(child) for _, child in below])


def with_parts(node: Any, like: Any, parts: Mapping[str, Shard], path: str = "") -> Tree:
    """Return a tree with the parts in the places where `like` has a `Shard`."""
    if isinstance(like, Shard):
        return parts[path]
    below = tree.children(like)
    if not below or isinstance(like, Packed):
        return node
    found = [
        with_parts(child, want, parts, tree.join(path, segment))
        for (segment, want), (_, child) in zip(below, tree.children(node) or [], strict=True)
    ]
    return _rebuilt(node, found)


def read_part(path: str, like: Shard, names: Mapping[str, str], rank: int, stored: StoredTree) -> Shard:
    """Return the parts of vectors that a rank holds. Beside them, 64 MB or one array are in memory.

    Args:
        path: of the `Shard` in the template.
        like: the `Shard` of the template.
        names: the stored path of each array by its path in the template; others are kept from it.
        rank: the rank.
        stored: the arrays.
    """
    found: list[Any] = []
    for value, vector in zip(like, like.layout.vectors, strict=True):
        if not isinstance(value, mx.array) or is_marker(value, vector):
            found.append(value)
            continue
        size = part_size(vector.ends[-1], like.count)
        begin, end = min(rank * size, vector.ends[-1]), min((rank + 1) * size, vector.ends[-1])
        parts: list[mx.array] = []
        for group in _groups(_wanted(members(path, like, vector), begin, end, names, stored)):
            arrays = stored.read(list(dict.fromkeys(each.name for each in group if each.name)))
            for each in group:
                own = arrays[each.name].reshape(-1) if each.name else value
                parts.append(mx.contiguous(own[each.start : each.stop].astype(value.dtype)))
            mx.eval(parts)
            del arrays
        if end - begin < size:
            parts.append(value[end - begin :])  # what fills up the last part is not stored
        whole = mx.concatenate(parts) if parts else value
        mx.eval(whole)
        found.append(whole)
        del parts
    return type(like)(*found)


def _wanted(
    held: list[Member], begin: int, end: int, names: Mapping[str, str], stored: StoredTree
) -> Iterator[_Wanted]:
    """Yield what makes up the elements of a vector from `begin` to `end`, in order."""
    for member in held:
        first, last = max(member.start, begin), min(member.stop, end)
        if first >= last:
            continue
        if member.path not in names:
            yield _Wanted("", first - begin, last - begin, 0)
            continue
        name = names[member.path]
        whole = Piece(name, 0, member.stop - member.start)
        for piece in stored.pieces.get(name, (whole,)):
            start = max(first - member.start, piece.start)
            stop = min(last - member.start, piece.stop)
            if start < stop:
                size = nbytes(stored.leaves[name].dtype, (piece.stop - piece.start,))
                yield _Wanted(piece.name, start - piece.start, stop - piece.start, size)


def _groups(wanted: Iterable[_Wanted]) -> Iterator[list[_Wanted]]:
    group: list[_Wanted] = []
    filled = 0
    for each in wanted:
        if group and filled + each.nbytes > _TOGETHER:
            yield group
            group, filled = [], 0
        group.append(each)
        filled += each.nbytes
    if group:
        yield group


def _rebuilt(like: Any, children: list[Any]) -> Any:
    if type(like) is dict:
        return dict(zip(like, children, strict=True))
    return type(like)(*children) if tree.is_namedtuple(like) else type(like)(children)
