"""Norms of trees, and the sums that they are made of."""

import itertools
import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import collective, cuda, hardware, scalars, sums
from purestep._core.tree import leaves
from purestep._core.tree import map as map_leaves
from purestep._core.types import Tree

# Leaves of up to this many elements are joined into one vector before they are summed.
_SMALL = 1 << 12
_CHAIN = 64  # squares in one plain sum; the root halves the relative error
_ROWS = 1 << 16  # arrays with at most this many rows, or columns, are summed one by one


def norm(tree: Tree) -> mx.array:
    """Return the Euclidean norm of all leaves together, 0-d, summed in float32 for every dtype."""
    # The partial sums of all leaves are added together: one sum per leaf would cost several kernels each.
    found = leaves(tree)
    if not found:
        return mx.array(0.0)
    return scalars.root(collective.completed(sums.total(partial_sums(found).vector)))


class PartialSums(NamedTuple):
    """Sums over parts of the leaves of a tree, in one vector.

    Attributes:
        vector: float32, 1-d.
        spans: for each leaf, the beginning and the end of its part of the vector.
    """

    vector: mx.array
    spans: list[tuple[int, int]]


def is_zero(x: mx.array) -> mx.array:
    """Return whether each element is 0."""
    return x == 0


def is_nonfinite(x: mx.array) -> mx.array:
    """Return whether each element is NaN or infinite."""
    return ~mx.isfinite(x)


_KINDS: dict[Any, str] = {mx.square: "squares", is_zero: "zeros", is_nonfinite: "nonfinite"}


class _Shared(threading.local):
    def __init__(self) -> None:
        self.known: dict[Any, tuple[Any, PartialSums]] | None = None
        self.sources: dict[int, tuple[mx.array, mx.array]] = {}


_shared = _Shared()


class shared(ContextDecorator):  # noqa: N801
    """Compute equal sums of the same arrays once within the `with` block, in this thread."""

    def _recreate_cm(self) -> "shared":
        return shared()  # a decorated function may call itself

    def __enter__(self) -> None:
        self._before = _shared.known, _shared.sources
        _shared.known, _shared.sources = {}, {}

    def __exit__(self, *error: object) -> None:
        _shared.known, _shared.sources = self._before


def same(tree: Tree, source: Tree) -> None:
    """Let kernels read `source` for `tree` in the current `shared` block: the same numbers, but narrower."""
    if _shared.known is not None:
        for leaf, narrow in zip(leaves(tree), leaves(source), strict=True):
            _shared.sources[id(leaf)] = leaf, narrow


def _by_kernel(kind: str, arrays: list[mx.array]) -> PartialSums:
    key, known = (kind, *map(id, arrays)), _shared.known
    if known is not None and key in known:
        return known[key][1]
    vector, counts = cuda.sums(kind, arrays)
    ends = list(itertools.accumulate(counts))
    found = PartialSums(vector, list(zip([0, *ends], ends, strict=False)))
    if known is not None:
        known[key] = arrays, found  # it holds the arrays, so that their ids stay theirs
    return found


def distance_sums(tree: Tree, other: Tree) -> PartialSums:
    """Return partial sums of the squared differences of two trees of one structure, in float32."""
    arrays = leaves(tree) + leaves(other)
    if cuda.serves(arrays):
        return _by_kernel("distances", arrays)
    return partial_sums(map_leaves(lambda a, b: a.astype(mx.float32) - b, tree, other))


def partial_sums(tree: Tree, fn: Callable[[mx.array], mx.array] = mx.square) -> PartialSums:
    """Return partial sums of `fn` of the elements, which `fn` receives in float32.

    In a compiled step, equal partial sums are computed once: those of `norm` serve the norms of layers too.
    """
    found = leaves(tree)
    if fn in _KINDS:
        narrow = _shared.sources
        read = [narrow[id(leaf)][1] if id(leaf) in narrow else leaf for leaf in found] if narrow else found
        if cuda.serves(read):
            return _by_kernel(_KINDS[fn], read)
    # On a CPU, sums along the first axes are fast for every layout. Those along the last axis take 15 times
    # as long if the array is transposed, as the gradient of a matrix is.
    on_cpu = not hardware.on_gpu()
    small: list[mx.array] = []
    large: list[mx.array] = []
    lengths: list[tuple[bool, int]] = []
    for leaf in found:
        x = leaf.astype(mx.float32)
        is_small = x.size <= _SMALL
        if is_small:
            part = x.reshape(-1)
        elif x.ndim > 1 and x.shape[kept := -1 if on_cpu else 0] <= _ROWS:
            axes = range(x.ndim - 1) if kept else range(1, x.ndim)
            part = sums.total(fn(x), axes, chain=_CHAIN)
        else:
            part = sums.total(fn(x)).reshape(1)
        (small if is_small else large).append(part)
        lengths.append((is_small, part.size))
    ends = [
        sum(part.size for part in large),
        0,
    ]  # of what precedes the next small part, and the next large one
    spans = []
    for is_small, length in lengths:
        begin = ends[not is_small]
        spans.append((begin, begin + length))
        ends[not is_small] += length
    return PartialSums(_joined(large + ([fn(_joined(small))] if small else [])), spans)


def _joined(vectors: list[mx.array]) -> mx.array:
    return mx.concatenate(vectors) if len(vectors) > 1 else vectors[0]
