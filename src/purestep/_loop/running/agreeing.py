"""The batches of a run in several processes: each step is made by all ranks or by none."""

import warnings
from collections.abc import Callable
from typing import Any

from purestep._core.types import Batch
from purestep._loop.core.ranks import Group, Ranks
from purestep._loop.running.cursor import Cursor, Drawn, checksum
from purestep._loop.running.feeding import INTERRUPTED, Feed
from purestep._loop.running.run import Span


class RepeatedRowsWarning(UserWarning):
    """All ranks of a run received the same rows."""


class AgreedFeed(Feed):
    """The batches of this rank. Before a step is sent, all ranks tell whether they have built it.

    If the source of one rank ends or raises, or a rank receives a signal, no rank sends the step: the
    operations of a step would wait forever for a rank that does not make it.

    Attributes:
        ended: says which rank's source ended before the others; `None` if that of all did.
    """

    def __init__(
        self,
        cursor: Cursor,
        most: int | None,
        prefetch: int,
        *,
        ranks: Group,
        start: int,
        sizes: Callable[[Batch], tuple[int, int]],
    ):
        super().__init__(cursor, most, prefetch)
        self._ranks, self._step, self._sizes = ranks, start, sizes
        self._first, self._open = True, False  # open: the step is not agreed on
        self.ended: str | None = None

    def next(self, state: Any, interrupted: Callable[[], bool] = bool) -> Drawn | None:
        """Return the next batch, `None` after the last one of all ranks, or `INTERRUPTED`."""
        self._open, self._step = True, self._step + 1
        drawn = super().next(state, lambda: self._ranks.asked.received)
        if self._first:
            # In the first call of a step the ranks compare their states, so all of them must make it.
            found = self._agreed(drawn)
            self._first, self._open = False, found is not None and found is not INTERRUPTED
            return found
        if drawn is None or drawn is INTERRUPTED:
            return self.agreed(drawn)
        return drawn

    def agreed(self, drawn: Drawn | None) -> Drawn | None:
        """Return the batch, or what `next` returns at the end, if not all ranks have built the step."""
        self._open = False
        return self._agreed(drawn)

    def failed(self, error: Exception) -> Exception:
        """Tell the other ranks that this one has no batch, or cannot build the step; return the error."""
        if not self._open:
            return error
        self._open = False
        if type(error) is RuntimeError and self._ranks.asked.received:
            # Ctrl-C in a terminal also ends the compilers that MLX starts.
            self._agreed(INTERRUPTED)
            return error

        def fail() -> None:
            raise error

        try:
            self._ranks.gathered(self._place, fail)
        except Exception as raised:
            return raised
        return error

    @property
    def lost(self) -> bool:
        """Whether another rank has left the run: a step that was sent ahead may never be done."""
        return self._ranks.lost

    @property
    def _place(self) -> str:
        return f"{'the data of ' if self._first else ''}step {self._step}"

    def _agreed(self, drawn: Drawn | None) -> Drawn | None:
        first = self._first

        def own() -> list[Any]:
            if drawn is None or drawn is INTERRUPTED:
                return ["end" if drawn is None else "signal", 0, 0, None]
            return ["batch", *self._sizes(drawn.batch), checksum(drawn.batch) if first else None]

        found = self._ranks.gathered(self._place, own)
        ended = [rank for rank, each in enumerate(found) if each[0] == "end"]
        if len(ended) == len(found):
            return None
        if self._ranks.signalled or any(each[0] == "signal" for each in found):
            return INTERRUPTED
        if ended:
            self.ended = f"the source of rank {ended[0]} ended after {self._step - 1} steps"
            return None
        if first and self._ranks.rank == 0 and len({each[3] for each in found}) == 1:
            message = "fit: all ranks received the same rows; pass the source to ps.data.for_rank"
            warnings.warn(message, RepeatedRowsWarning, stacklevel=2)
        assert drawn is not None
        return drawn._replace(sizes=(sum(each[1] for each in found), sum(each[2] for each in found)))


def feed_of(
    cursor: Cursor, span: Span, prefetch: int, ranks: Ranks, sizes: Callable[[Batch], tuple[int, int]]
) -> Feed:
    """Return the batches of a run in one process or in several.

    Args:
        cursor: the batches of this rank.
        span: the steps of the run.
        prefetch: batches to prepare ahead.
        ranks: the processes.
        sizes: returns the samples and tokens of a batch.
    """
    if not isinstance(ranks, Group):
        return Feed(cursor, span.most, prefetch)
    return AgreedFeed(cursor, span.most, prefetch, ranks=ranks, start=span.start, sizes=sizes)
