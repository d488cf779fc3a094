"""Sums over the leaves of a tree, by layer and in natural order."""

import re
from collections.abc import Callable

import mlx.core as mx

from purestep._core import checks, sums, tree
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
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


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
    partial = tree.partial_sums(values, fn)
    spans: dict[str, list[tuple[int, int]]] = {}
    for path, span in zip(tree.paths(values), partial.spans, strict=True):
        spans.setdefault(by(path), []).append(span)
    names = sorted(spans, key=natural)
    starts, counts, first, rows = [], [], [], []
    for name in names:
        first.append(len(starts))
        for begin, end in spans[name]:
            for start in range(begin, end, _BLOCK):
                starts.append(start)
                counts.append(min(_BLOCK, end - start))
        rows.append(len(starts) - first[-1])
    blocks = _gathered(partial.vector, starts, counts)
    found = _gathered(blocks, first, rows)
    return {name: found[index : index + 1].reshape(()) for index, name in enumerate(names)}


def _gathered(vector: mx.array, starts: list[int], counts: list[int]) -> mx.array:
    """Return the sum of `counts[i]` elements from `starts[i]`, for each i."""
    offsets = mx.arange(max(counts, default=0))
    inside = offsets < mx.array(counts)[:, None]
    index = mx.where(inside, mx.array(starts)[:, None] + offsets, 0)
    return sums.total(mx.where(inside, vector[index], 0.0), axis=1)


def check_groups(caller: str, by: Groups) -> Groups:
    """Refuse a value that is not a function of a path."""
    checks.function(caller, "by", by)
    return by
