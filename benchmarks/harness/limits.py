"""How long a benchmark may take, and what ends it early."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_RESERVE = 6.0  # seconds that are kept for the table, the JSON and the picture


class StoppedError(BaseException):
    """The time limit or a signal ended the measurements; what was measured before counts.

    It is no `Exception`, so that no contestant's failure is confused with it.
    """


class Limit:
    """A moment by which measurements end; `None` for `seconds` sets no limit.

    A race begins no round that would not end in time. `enforced` also ends a call that takes too long.
    """

    def __init__(self, seconds: float | None = None, begun: float | None = None):
        begun = time.monotonic() if begun is None else begun
        self._seconds = seconds
        self._end = None if seconds is None else begun + max(0.75 * seconds, seconds - _RESERVE)

    def left(self) -> float:
        """Return the seconds that are left, at least 0; infinity without a limit."""
        return float("inf") if self._end is None else max(0.0, self._end - time.monotonic())

    def share(self, fraction: float) -> "Limit":
        """Return the limit of a part of the work: this fraction of the time that is left."""
        part = Limit()
        part._seconds = self._seconds
        part._end = None if self._end is None else time.monotonic() + fraction * self.left()
        return part

    @contextmanager
    def enforced(self) -> Iterator["Limit"]:
        """Raise `StoppedError` when the limit is reached, and on SIGTERM and SIGINT. Main thread only."""

        def stop(number: int, frame: Any) -> None:
            for each in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
                signal.signal(each, signal.SIG_IGN)  # while the processes of contestants end
            if number == signal.SIGALRM:
                raise StoppedError(f"limit of {self._seconds:g} s")
            raise StoppedError("terminated" if number == signal.SIGTERM else "interrupted")

        before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
        if self._end is not None:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, self.left()))
        try:
            yield self
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for each, handler in before.items():
                signal.signal(each, handler)
