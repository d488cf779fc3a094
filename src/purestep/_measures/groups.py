"""Sums over the leaves of a tree, by layer and in natural order."""

import re
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import checks, norms, sums, tree
from purestep._core.types import Tree

Groups = Callable[[str], str]
"""The name of the group of a leaf, from its path."""

_BLOCK = 64  # partial sums that are added in one row


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


def group_sums(values: Tree, fn: Callable[[mx.array], mx.array], by: Groups) -> dict[str, mx.array]:
    """Return the sum of `fn` of the elements of each group, 0-d float32, in natural order.

    The number of operations hardly grows with the number of leaves: partial sums of all leaves are gathered
    by group and added together.
    """
    if not tree.leaves(values):
        return {}
    partial = norms.partial_sums(values, fn)
    spans: dict[str, list[tuple[int, int]]] = {}
    for path, span in zip(tree.paths(values), partial.spans, strict=True):
        spans.setdefault(by(path), []).append(span)
    names = sorted(spans, key=natural)
    # Sums of whole blocks are one contiguous reduction. Only the ends of the spans are gathered.
    whole = partial.vector.size // _BLOCK
    blocks = sums.total(partial.vector[: whole * _BLOCK].reshape(whole, _BLOCK), axis=1)
    rows, ends = _Rows(), _Rows()
    for name in names:
        for begin, end in _joined(spans[name]):
            first, last = -(-begin // _BLOCK), min(end // _BLOCK, whole)
            if first >= last:
                ends.add(name, begin, end)
                continue
            ends.add(name, begin, first * _BLOCK)
            rows.add(name, first, last)
            ends.add(name, last * _BLOCK, end)
    gathered = [
        _gathered(vector, each) for vector, each in ((blocks, rows), (partial.vector, ends)) if each.names
    ]
    parts = mx.concatenate(gathered or [mx.zeros(0)])  # no parts, if no leaf has an element
    places: dict[str, list[int]] = {name: [] for name in names}
    for index, name in enumerate(rows.names + ends.names):
        places[name].append(index)
    widest = max(map(len, places.values()))
    filled = [places[name] + [parts.size] * (widest - len(places[name])) for name in names]
    found = sums.total(mx.pad(parts, (0, 1))[mx.array(filled, mx.uint32)], axis=1)
    return {name: found[index : index + 1].reshape(()) for index, name in enumerate(names)}


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
        self.starts: list[int] = []
        self.counts: list[int] = []

    def add(self, name: str, begin: int, end: int) -> None:
        """Add the rows of a span."""
        for start in range(begin, end, _BLOCK):
            self.names.append(name)
            self.starts.append(start)
            self.counts.append(min(_BLOCK, end - start))


def _gathered(vector: mx.array, rows: _Rows) -> mx.array:
    """Return the sum of each row."""
    offsets = mx.arange(max(rows.counts), dtype=mx.uint32)
    inside = offsets < mx.array(rows.counts, mx.uint32)[:, None]
    index = mx.where(inside, mx.array(rows.starts, mx.uint32)[:, None] + offsets, 0)
    return sums.total(mx.where(inside, vector[index], 0.0), axis=1)


def check_groups(caller: str, by: Groups) -> Groups:
    """Return `by`, which then refuses a name that is not a string; refuse what is no function of a path."""
    checks.function(caller, "by", by)

    def named(path: str) -> str:
        name: Any = by(path)
        if not isinstance(name, str):
            raise TypeError(f"{caller}: by must return a string, got {name!r} for {path}")
        return name

    return named
