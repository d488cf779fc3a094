"""A clock that charges every moment of a step to one part of it."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

OTHER = "other"
_NOTHING = nullcontext()


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

    def begin(self, step: Any = None) -> None:
        """Begin the first step."""

    def part(self, name: str) -> AbstractContextManager[Any]:
        """Measure a block as a part of the step."""
        return _NOTHING

    def dispatching(self) -> AbstractContextManager[Any]:
        """Measure a block as `dispatch`, and the time in which the thread sleeps as `queue`."""
        return _NOTHING

    def lap(self) -> None:
        """End the step, and begin the next one."""


class Clock(Off):
    """A clock that runs for a number of steps.

    Parts may lie in each other. Each moment belongs to the innermost part, and outside of all parts to
    `other`, so the parts of a step add up to its wall-clock time.

    Args:
        steps: the steps to measure; after them the clock stands.
        started: called when the clock is about to begin step number `warmup + 1`.
        ended: called when the clock ends.
    """

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
        self._step: Any = None
        self._traces: int | None = None
        self._stack: list[str] = []
        self._inner = OTHER
        self._parts: dict[str, _Part] = {}
        self._restart()

    def begin(self, step: Any = None) -> None:
        """Begin the first step anew; `step.traces` counts the traces of a compiled step."""
        self._step, self._traces = step, _traces(step)
        self._restart()

    def part(self, name: str) -> AbstractContextManager[Any]:
        """Measure a block as a part of the step."""
        if self.done:
            return _NOTHING
        if name not in self._parts:
            self._parts[name] = _Part(self, name)
        return self._parts[name]

    def dispatching(self) -> AbstractContextManager[Any]:
        """Measure a block as `dispatch`, and the time in which the thread sleeps as `queue`."""
        return _NOTHING if self.done else _Dispatch(self)

    def lap(self) -> None:
        """End the step, and begin the next one."""
        if self.done:
            return
        now = self.charge()
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
            self.done = True
            self._step = None
            if self._ended is not None:
                self._ended()

    def enter(self, name: str) -> None:
        """Begin a part."""
        self.charge()
        self._stack.append(self._inner)
        self._inner = name

    def leave(self) -> None:
        """End the innermost part."""
        self.charge()
        self._inner = self._stack.pop()

    def charge(self) -> float:
        """Charge the time since the last call to the innermost part; return the time."""
        now = self.now()
        self._row[self._inner] = self._row.get(self._inner, 0.0) + now - self._since
        self._since = now
        return now

    def move(self, seconds: float, source: str, target: str) -> None:
        """Charge time to another part."""
        self._row[source] = self._row.get(source, 0.0) - seconds
        self._row[target] = self._row.get(target, 0.0) + seconds

    def _restart(self) -> None:
        self._row: dict[str, float] = {}
        self._since = self._begun = self.now()


class _Part:
    """A block of a part. It has no memory of its own, so it may lie in itself."""

    __slots__ = ("_clock", "_name")

    def __init__(self, clock: Clock, name: str):
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._clock.enter(self._name)

    def __exit__(self, *error: object) -> None:
        self._clock.leave()


class _Dispatch:
    """A block of `dispatch`, without the time in which its thread slept."""

    __slots__ = ("_busy", "_clock", "_wall")

    def __init__(self, clock: Clock):
        self._clock = clock

    def __enter__(self) -> None:
        self._clock.enter("dispatch")
        self._wall, self._busy = self._clock.now(), self._clock.busy()

    def __exit__(self, *error: object) -> None:
        clock = self._clock
        worked, wall = clock.busy() - self._busy, clock.now() - self._wall
        clock.leave()
        clock.move(max(0.0, wall - worked), "dispatch", "queue")


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
