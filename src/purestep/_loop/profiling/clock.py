"""A clock that charges every moment of a step to one part of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

OTHER = "other"


class StepTimes(NamedTuple):
    """The times of one step.

    Attributes:
        step: the number of the step since the profile began, from 1.
        seconds: wall-clock seconds.
        parts: seconds by part; their sum is `seconds`. A part that did not occur is absent.
        traces: how often a compiled step was traced in it; `None` for other steps.
    """

    step: int
    seconds: float
    parts: dict[str, float]
    traces: int | None = None


class Off:
    """The clock of a run that is not profiled: it measures nothing."""

    __slots__ = ()

    def begin(self, step: Any = None) -> None:
        """Begin the first step."""

    def at(self, name: str) -> None:
        """Begin a part; it ends when the next one begins."""

    def dispatching(self) -> None:
        """Begin the part `dispatch`."""

    def dispatched(self) -> None:
        """End it; the time in which the thread slept is the part `queue`."""

    def lap(self) -> None:
        """End the step, and begin the next one."""


class Clock(Off):
    """A clock that runs for a number of steps.

    A loop changes from part to part by `at`. The blocks of `part` may lie in each other and in the parts of
    the loop. Each moment belongs to the innermost part, so the parts of a step add up to its wall-clock time.

    Args:
        steps: the steps to measure; after them the clock stands.
        warmup: the steps before them.
        started: called when the clock is about to begin step number `warmup + 1`.
        ended: called when the clock ends.
        now: the wall clock, in seconds.
        busy: the processor time of this thread, in seconds.
    """

    __slots__ = (
        "_before", "_begun", "_ended", "_inner", "_most", "_row", "_since", "_stack", "_started", "_step",
        "_traces", "_warmup", "busy", "done", "now", "rows", "taken",
    )  # fmt: skip

    def __init__(
        self,
        steps: int,
        warmup: int,
        *,
        started: Callable[[], None] | None = None,
        ended: Callable[[], None] | None = None,
        now: Callable[[], float] = time.perf_counter,
        busy: Callable[[], float] = time.thread_time,
    ):
        self._most, self._warmup = warmup + steps, warmup
        self._started, self._ended = started, ended
        self.now, self.busy = now, busy
        self.rows: list[StepTimes] = []
        self.taken = self.done = False
        self._inner, self._stack = OTHER, []
        self._before = 0.0
        self.begin()

    def begin(self, step: Any = None) -> None:
        """Begin the first step anew; `step.traces` counts the traces of a compiled step."""
        self._step, self._traces = step, _traces(step)
        self._restart()

    def at(self, name: str) -> None:
        """Begin a part; it ends when the next one begins."""
        if not self.done:
            self._charge()
            self._inner = name

    def dispatching(self) -> None:
        """Begin the part `dispatch`."""
        if not self.done:
            self.at("dispatch")
            self._before = self.busy()

    def dispatched(self) -> None:
        """End it; the time in which the thread slept is the part `queue`."""
        if self.done:
            return
        row, worked, now = self._row, self.busy() - self._before, self.now()
        elapsed, self._since = now - self._since, now
        worked = min(worked, elapsed)
        row["dispatch"] = row.get("dispatch", 0.0) + worked
        row["queue"] = row.get("queue", 0.0) + elapsed - worked
        self._inner = OTHER

    def lap(self) -> None:
        """End the step, and begin the next one."""
        if self.done:
            return
        now = self._charge()
        traces = _traces(self._step)
        made = None if traces is None or self._traces is None else traces - self._traces
        self.rows.append(StepTimes(len(self.rows) + 1, now - self._begun, self._row, made))
        self._row, self._begun, self._traces = {}, now, traces
        if len(self.rows) == self._most:
            self.end()
        elif len(self.rows) == self._warmup and self._started is not None:
            self._started()
            self._restart()

    def end(self) -> None:
        """Stop the clock. The step that has begun is dropped."""
        if not self.done:
            self.done, self._step = True, None
            if self._ended is not None:
                self._ended()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure a block as a part of the step."""
        self._stack.append(self._inner)
        self.at(name)
        try:
            yield
        finally:
            self.at(self._stack.pop())

    def _charge(self) -> float:
        """Charge the time since the last call to the innermost part; return the time."""
        now, row, name = self.now(), self._row, self._inner
        row[name] = row.get(name, 0.0) + now - self._since
        self._since = now
        return now

    def _restart(self) -> None:
        self._row: dict[str, float] = {}
        self._since = self._begun = self.now()


def _traces(step: Any) -> int | None:
    found = getattr(step, "traces", None)
    return found if isinstance(found, int) else None


OFF = Off()
CURRENT: ContextVar[Clock | None] = ContextVar("purestep_profile", default=None)


def take() -> Off:
    """Return the clock for a run that begins now. Only the first run in the block of a profile has one."""
    clock = CURRENT.get()
    if clock is None or clock.taken or clock.done or clock.rows:
        return OFF
    clock.taken = True
    return clock
