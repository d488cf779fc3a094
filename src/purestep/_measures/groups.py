"""Sums over the leaves of a tree, by layer and in natural order."""

import functools
import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, hardware, sums, tree
from purestep._core.norms import PartialSums
from purestep._core.types import Tree

Groups = Callable[[str], str]
"""The name of the group of a leaf, from its path."""

_BLOCK = 64  # partial sums that are added in one row
_FEW, _FEW_ON_GPU = 1 << 12, 1 << 16  # elements of a table with a row for each group


def layer_of(path: str) -> str:
    """Return the layer of an array: its path up to the first number, or else without its last name.

    >>> layer_of("encoder.layers.10.attention.query.weight"), layer_of("head.weight"), layer_of("scale")
    ('encoder.layers.10', 'head', 'scale')
    """
    segments = path.split(".")
    for index, segment in enumerate(segments[:-1]):
        if segment.isdigit():
            return ".".join(segments[: index + 1])
    return ".".join(segments[:-1]) or path


def natural(path: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts paths with their numbers by value.

    >>> sorted(["layers.10", "layers.9", "embed"], key=natural)
    ['embed', 'layers.9', 'layers.10']
    """
    parts = re.split(r"(\d+)", path)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def sizes(values: Tree, by: Groups) -> dict[str, int]:
    """Return the number of elements of each group, in natural order."""
    found: dict[str, int] = {}
    for path, leaf in tree.items(values):
        name = by(path)
        found[name] = found.get(name, 0) + leaf.size
    return {name: found[name] for name in sorted(found, key=natural)}


class Grouped(NamedTuple):
    """A number for each group.

    Attributes:
        names: of the groups, in natural order.
        vector: float32, [groups].
    """

    names: tuple[str, ...]
    vector: mx.array

    def each(self) -> dict[str, mx.array]:
        """Return the numbers by name, as 0-d views."""
        return {name: self.vector[i : i + 1].reshape(()) for i, name in enumerate(self.names)}


def group_sums(values: Tree, partial: PartialSums, by: Groups) -> Grouped:
    """Return the sum of each group from partial sums over the leaves.

    The number of kernels does not grow with the number of leaves and groups: three for a few thousand partial
    sums, such as those of CUDA kernels.
    """
    if not partial.spans:
        return Grouped((), mx.zeros(0))
    groups = tuple(by(path) for path in tree.paths(values))
    few = _FEW_ON_GPU if hardware.on_gpu() else _FEW
    plan = _plan(groups, tuple(partial.spans), partial.vector.size, few)
    if plan.direct is not None:
        return Grouped(plan.names, _gathered(partial.vector, plan.direct))
    # Sums of whole blocks are one contiguous reduction. Only the ends of the spans are gathered.
    whole = partial.vector.size // _BLOCK
    blocks = sums.total(partial.vector[: whole * _BLOCK].reshape(whole, _BLOCK), axis=1)
    pairs = (blocks, plan.blocks), (partial.vector, plan.ends)
    parts = [_gathered(vector, table) for vector, table in pairs if table is not None]
    return Grouped(plan.names, _gathered(mx.concatenate(parts), plan.parts))


class _Table(NamedTuple):
    """Places to gather; rows of several lengths are filled up.

    Attributes:
        index: uint32, [rows, longest].
        inside: bool, [rows, longest]: false where the row has ended.
    """

    index: mx.array
    inside: mx.array


class _Plan(NamedTuple):
    """How partial sums are added by group: all at once by `direct`, or by the other three tables."""

    names: tuple[str, ...]
    direct: _Table | None = None
    blocks: _Table | None = None
    ends: _Table | None = None
    parts: _Table | None = None


@functools.lru_cache(maxsize=64)
def _plan(groups: tuple[str, ...], spans: tuple[tuple[int, int], ...], size: int, few: int) -> _Plan:
    """Plan the sums of groups.

    It is kept, so that equal sums of two measurements read the same tables, and are computed once in a
    compiled step.

    Args:
        groups: the name of the group of each leaf.
        spans: the part of the vector of each leaf.
        size: of the vector.
        few: a table with a row for each group may have so many elements.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    for name, span in zip(groups, spans, strict=True):
        found.setdefault(name, []).append(span)
    names = tuple(sorted(found, key=natural))
    lengths = [sum(end - begin for begin, end in found[name]) for name in names]
    if size == 0 or len(names) * max(lengths) <= few:
        places = (itertools.chain(*(range(*span) for span in found[name])) for name in names)
        return _Plan(names, direct=_table(places))
    whole = size // _BLOCK
    rows, ends = _Rows(), _Rows()
    for name in names:
        for begin, end in _joined(found[name]):
            first, last = -(-begin // _BLOCK), min(end // _BLOCK, whole)
            if first >= last:
                ends.add(name, begin, end)
                continue
            ends.add(name, begin, first * _BLOCK)
            rows.add(name, first, last)
            ends.add(name, last * _BLOCK, end)
    parts: dict[str, list[int]] = {name: [] for name in names}
    for index, name in enumerate(rows.names + ends.names):
        parts[name].append(index)
    return _Plan(names, None, rows.table(), ends.table(), _table(parts.values()))


def _table(rows: Iterable[Iterable[int]]) -> _Table:
    places = [list(row) for row in rows]
    longest = max(map(len, places))
    index = [row + [0] * (longest - len(row)) for row in places]
    inside = [[True] * len(row) + [False] * (longest - len(row)) for row in places]
    shape = len(places), longest
    return _Table(mx.array(index, mx.uint32).reshape(shape), mx.array(inside, mx.bool_).reshape(shape))


def _gathered(vector: mx.array, table: _Table | None) -> mx.array:
    """Return the sum of the elements of each row of a table."""
    assert table is not None
    if not vector.size:
        return mx.zeros(table.index.shape[0])
    return sums.total(mx.where(table.inside, vector[table.index], 0.0), axis=1)


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join spans that follow one another."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if found and found[-1][1] == begin:
            found[-1] = (found[-1][0], end)
        else:
            found.append((begin, end))
    return found


def group_counts(values: Tree, test: Callable[[mx.array], mx.array], by: Groups) -> dict[str, mx.array]:
    """Return the number of elements of each group that pass a test, 0-d float32, in natural order.

    Integers may be added in any order, so each leaf is one sum in the order of its memory: on a CPU, the sums
    of `group_sums` take 15 times as long for a transposed array, such as the gradient of a matrix.
    """
    found: dict[str, list[mx.array]] = {}
    for path, leaf in tree.items(values):
        found.setdefault(by(path), []).append(test(leaf).sum().astype(mx.float32))
    return {name: tree.added(found[name]) for name in sorted(found, key=natural)}


class _Rows:
    """Up to `_BLOCK` neighbours each, with the name of their group."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.rows: list[range] = []

    def add(self, name: str, begin: int, end: int) -> None:
        """Add the rows of a span."""
        for start in range(begin, end, _BLOCK):
            self.names.append(name)
            self.rows.append(range(start, min(start + _BLOCK, end)))

    def table(self) -> _Table | None:
        """Return the rows as a table, `None` without rows."""
        return _table(self.rows) if self.rows else None


def check_groups(caller: str, by: Groups) -> Groups:
    """Return `by`, which then refuses a name that is not a string; refuse what is no function of a path."""
    checks.function(caller, "by", by)

    def named(path: str) -> str:
        name: Any = by(path)
        if not isinstance(name, str):
            raise TypeError(f"{caller}: by must return a string, got {name!r} for {path}")
        return name

    return named
