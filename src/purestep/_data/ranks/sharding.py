"""`for_rank`: a source of which each process reads its own rows."""

from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx

from purestep._core import checks
from purestep._core.types import Batch
from purestep._data.arrays.stacking import Stacked
from purestep._data.core.ranks import own_rows

_CALLER = "for_rank"


class Rows:
    """The rows of one process. `for_rank` makes it.

    Attributes:
        whole: the source of the rows of all processes.
    """

    def __init__(self, source: Any, rank: int, world: int, *, uneven: bool):
        self.whole = source
        self._rank, self._world, self._uneven = rank, world, uneven

    def own(self, batch: Batch) -> Batch:
        """Return the rows of this process of a batch of all processes."""
        return own_rows(_CALLER, batch, self._rank, self._world, uneven=self._uneven)

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.whole)


class RowsAt(Rows):
    """The rows of one process, of a source with `at`."""

    def __init__(self, source: Any, rank: int, world: int, *, uneven: bool):
        super().__init__(source, rank, world, uneven=uneven)
        self.on_policy = bool(getattr(source, "on_policy", False))

    def at(self, step: Any) -> Batch:
        """Return this process's rows of one step, or of one state for an on-policy source."""
        return self.own(self.whole.at(step))


class RowsOfIterable(Rows):
    """The rows of one process, of an iterable."""

    def __iter__(self) -> Iterator[Batch]:
        return (self.own(batch) for batch in self.whole)


class RowsOfIterator(RowsOfIterable):
    """The rows of one process, of an iterator."""

    def __next__(self) -> Batch:
        return self.own(next(self.whole))

    def __iter__(self) -> Iterator[Batch]:
        return self


def for_rank(source: Any, *, group: mx.distributed.Group | None = None, uneven: bool = False) -> Any:
    """Return a source that gives this process its own rows of the batches of a source.

    Every process makes the same source, whose batches hold the rows of all processes; rank 0 takes the first
    rows, and so on. So a run is the same for any number of processes, and it can be resumed with another
    number. A group of one process receives the source itself.

    `Batches` and `TokenWindows`, and a `Mixture` or `Stages` of them, read only the rows of this process.
    Other sources make the whole batch in every process, and all but the own rows are dropped.

    Use it last: `for_rank(map(source, augment, seed=0))` augments the same rows in the same way in any number
    of processes. For `ps.scan`, stack afterwards: `stacked(for_rank(source), k)`.

    Args:
        source: an object with `at(step)`, an on-policy source, or an iterable of batches. All arrays of a
            batch have the same first axis, or none.
        group: the processes; `None` for all that were launched together.
        uneven: accept batches whose rows do not divide by the number of processes: the parts then differ by
            one row. This is exact only for a loss that returns a `Mean`. Each process must get a row.

    Raises:
        ValueError: if the source gives the rows of one process already. Drawing a batch raises it, on every
            process, if its rows do not divide.
        TypeError: if the source is one batch, a stack of batches, or cannot be iterated.

    >>> import purestep as ps
    >>> source = for_rank(ps.data.Batches({"x": mx.arange(6)}, batch_size=2, shuffle=False))
    >>> source.at(1)  # one process has all rows
    {'x': array([2, 3], dtype=int32)}
    """
    if isinstance(source, (dict, mx.array, str, bytes)):
        found = type(source).__name__
        raise TypeError(f"{_CALLER}: source must be an iterable of batches, got {found}; write [batch]")
    if not hasattr(source, "at") and not isinstance(source, Iterable):
        found = type(source).__name__
        raise TypeError(f"{_CALLER}: source must be iterable or have at(step), got {found}")
    if isinstance(source, Stacked):
        raise TypeError(f"{_CALLER}: source must not be stacked; write stacked(for_rank(source), k)")
    if not isinstance(uneven, bool):
        raise TypeError(f"{_CALLER}: uneven must be True or False, got {checks.shown(uneven)}")
    if group is not None and not isinstance(group, mx.distributed.Group):
        found = type(group).__name__
        raise TypeError(f"{_CALLER}: group must be a group of mx.distributed.init, got a {found}")
    processes = mx.distributed.init() if group is None else group
    return rows_of(source, processes.rank(), processes.size(), uneven=uneven)


def rows_of(source: Any, rank: int, world: int, *, uneven: bool = False) -> Any:
    """Do what `for_rank` does, for a given rank."""
    if isinstance(source, Rows) or getattr(source, "world", 1) != 1:
        raise checks.error(_CALLER, f"source must give the rows of all ranks, got {source!r:.80} of one rank")
    if world == 1:
        return source
    size = getattr(source, "batch_size", world)
    if not uneven and isinstance(size, int) and size % world:
        raise checks.error(
            _CALLER,
            f"batch_size must be divisible by {world} ranks, got {size}; pass uneven=True if the loss is a "
            "Mean",
        )
    if hasattr(source, "_of_rank"):  # it reads no other rows
        found = source._of_rank(rank, world, lambda child: rows_of(child, rank, world, uneven=uneven))
        if found is not None:
            return found
    if hasattr(source, "at"):
        return RowsAt(source, rank, world, uneven=uneven)
    kind = RowsOfIterator if isinstance(source, Iterator) else RowsOfIterable
    return kind(source, rank, world, uneven=uneven)
