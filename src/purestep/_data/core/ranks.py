"""The rows of one process out of a batch, and sources that know the rows of all processes."""

import copy
from collections.abc import Callable
from typing import Any, Self

from purestep._core import checks, tree
from purestep._core.types import Batch


def whole_of(source: Any) -> Any:
    """Return the source of the rows of all processes, or the source itself if it does not know it.

    >>> whole_of([1, 2])
    [1, 2]
    """
    return getattr(source, "_of_all_ranks", source)


class OfSources:
    """A source made of others, in `_sources`, each of which may give the rows of one process."""

    _sources: list[Any]

    @property
    def _of_all_ranks(self) -> Self:
        """The source of the rows of all processes."""
        return self._changed(whole_of)

    def _of_rank(self, rank: int, world: int, child: Callable[[Any], Any]) -> Self:
        """Return the source whose sources give the rows of one process."""
        return self._changed(child)

    def _changed(self, change: Callable[[Any], Any]) -> Self:
        sources = [change(source) for source in self._sources]
        if all(made is source for made, source in zip(sources, self._sources, strict=True)):
            return self
        made = copy.copy(self)
        made._sources = sources
        return made


def bounds(rows: int, rank: int, world: int) -> tuple[int, int]:
    """Return the first row of a rank and the row after its last; the parts differ by at most one row.

    >>> [bounds(7, rank, 3) for rank in range(3)]
    [(0, 2), (2, 4), (4, 7)]
    """
    return rows * rank // world, rows * (rank + 1) // world


def own_rows(caller: str, batch: Batch, rank: int, world: int, *, uneven: bool = False) -> Batch:
    """Return the rows of one rank of a batch of all ranks. Arrays without axes are returned as they are.

    Raises:
        ValueError: if the arrays differ in rows, or the rows do not divide.

    >>> import mlx.core as mx
    >>> own_rows("for_rank", {"x": mx.arange(4)}, 1, 2)
    {'x': array([2, 3], dtype=int32)}
    """
    counts = {
        tree.join("batch", path): leaf.shape[0]
        for path, leaf in tree.items(batch)
        if getattr(leaf, "shape", ())
    }
    if not counts:
        raise checks.error(caller, "batch must hold at least one array with rows, got none")
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{path} {count}" for path, count in counts.items())
        raise checks.error(caller, f"the arrays of a batch must share their first axis, got {shown}")
    path, rows = next(iter(counts.items()))
    if rows % world and not uneven:
        raise checks.error(
            caller,
            f"the rows of {path} must be divisible by {world} ranks, got {rows}; pass uneven=True if the "
            "loss is a Mean",
        )
    if rows < world:
        raise checks.error(caller, f"{path} must have a row for each of {world} ranks, got {rows}")
    first, end = bounds(rows, rank, world)
    return tree.map(lambda leaf: leaf[first:end] if getattr(leaf, "shape", ()) else leaf, batch)
