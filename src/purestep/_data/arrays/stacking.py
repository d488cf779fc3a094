"""`stacked`: a source of several batches at once, for `scan`."""

from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Batch, Source
from purestep._data.core.checking import source_of, step_of
from purestep._data.core.ranks import whole_of


class Stacked:
    """A source whose batches are stacked. `stacked` makes it."""

    def __init__(self, source: Source, k: int):
        self._source, self._k = source, k

    def at(self, step: int) -> Batch:
        """Return `k` batches of the source, stacked along a new first axis."""
        begin = step_of("stacked", step) * self._k
        batches = [self._source.at(begin + index) for index in range(self._k)]
        for index, batch in enumerate(batches, begin):
            _check_arrays(index, batch)
        first = tree.spec(batches[0])
        for index, batch in enumerate(batches[1:], begin + 1):
            if tree.spec(batch) != first:
                lines = tree.differences(tree.spec(batch), first, f"batch {index}", f"batch {begin}")
                raise checks.error("stacked", "the batches must have equal shapes: " + "; ".join(lines[:3]))
        return tree.map(lambda *rows: mx.stack(list(rows)), *batches)

    @property
    def _of_all_ranks(self) -> "Stacked":
        """The source of the rows of all processes."""
        whole = whole_of(self._source)
        return self if whole is self._source else Stacked(whole, self._k)

    def __len__(self) -> int:
        """Return how many stacks of batches fit in an epoch of the source."""
        source: Any = self._source
        return len(source) // self._k


def stacked(source: Source, k: int) -> Stacked:
    """Return a source of `k` batches at a time, for a step of `ps.scan`.

    `stacked(source, k).at(i)` holds the batches `i * k` to `i * k + k - 1` of the source, stacked along a new
    first axis of length `k`. Its `len` is that of the source divided by `k`, rounded down.

    Args:
        source: an object with `at(step) -> batch`, whose batches are trees of arrays of equal shapes.
        k: the number of batches in a stack, at least 1.

    Raises:
        TypeError: if the source is of another kind. Drawing a batch raises it for a leaf that is not an
            array, with the path.
        ValueError: if `k` is below 1, or above the number of batches of an epoch. Drawing a batch raises it
            if shapes differ, with the path.

    >>> import purestep as ps
    >>> source = stacked(ps.data.Batches({"x": mx.arange(6)}, 1, shuffle=False), 3)
    >>> source.at(1), len(source)
    ({'x': array([[3],
           [4],
           [5]], dtype=int32)}, 2)
    """
    caller = "stacked"
    source_of(caller, "source", source)
    k = checks.integer(caller, "k", k, least=1)
    made = Stacked(source, k)
    length = _length(source)
    if length is not None and length < k:
        raise checks.error(caller, f"k must be at most {length}, the batches of an epoch, got {k}")
    return made


def _length(source: Any) -> int | None:
    """Return the batches of an epoch; `None` for a source without an end, or a stack of it."""
    try:
        return len(source)
    except TypeError:
        return None


def _check_arrays(index: int, batch: Batch) -> None:
    for path, leaf in tree.items(batch):
        if not isinstance(leaf, mx.array):
            kind = type(leaf).__name__
            raise TypeError(f"stacked: {tree.join(f'batch {index}', path)} must be an mx.array, got {kind}")
