"""Rates: steps, samples and tokens a second, and callbacks that measure them."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from purestep._loop.callbacks.intervals import EachStep
from purestep._loop.core.progress import Progress, Run


class Mark(NamedTuple):
    """What was done at a moment.

    Attributes:
        busy: seconds of making steps: without evaluations, checkpoints and the first step of the process.
        step: steps made.
        samples: training examples seen.
        tokens: tokens seen.
    """

    busy: float
    step: int
    samples: int
    tokens: int


def rates(before: Mark, now: Mark) -> dict[str, float]:
    """Return steps, samples and tokens a second between two moments; nothing without tokens or time.

    >>> rates(Mark(0.0, 0, 0, 0), Mark(2.0, 10, 80, 0))
    {'steps_per_second': 5.0, 'samples_per_second': 40.0}
    """
    seconds = now.busy - before.busy
    if seconds <= 0:
        return {}
    counts = {
        "steps_per_second": now.step - before.step,
        "samples_per_second": now.samples - before.samples,
        "tokens_per_second": now.tokens - before.tokens,
    }
    return {name: count / seconds for name, count in counts.items() if count}


class Meter:
    """A clock that runs while steps are made."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._since = clock, None
        self._busy = 0.0
        self.before: Mark | None = None  # the last row
        self.now: Mark | None = None

    def step(self, progress: Progress) -> None:
        """Note that a step has ended."""
        now = self._clock()
        if self._since is not None:
            self._busy += now - self._since
        self._since: float | None = now
        self.now = Mark(self._busy, progress.step, progress.samples, progress.tokens)
        if self.before is None:  # the first step, which is compiled, does not count
            self.before = self.now

    def pause(self) -> None:
        """Note that something other than a step has ended."""
        if self._since is not None:
            self._since = self._clock()

    def lap(self) -> dict[str, float]:
        """Return the rates since the last lap."""
        if self.before is None or self.now is None:
            return {}
        found, self.before = rates(self.before, self.now), self.now
        return found


class Metered(EachStep):
    """A callback with a meter; `rates` are those of the last row."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._meter = Meter(clock)
        self.rates: dict[str, float] = {}

    def on_train_begin(self, run: Run) -> None:
        """Start a new clock."""
        self._meter, self.rates = Meter(self._clock), {}

    def on_step_end(self, progress: Progress) -> None:
        """Count the step; at a row, compute the rates since the row before."""
        self._meter.step(progress)
        if progress.row is not None:
            self.rates = self._meter.lap()

    def passed(self, progress: Progress) -> None:
        """Count the step."""
        self._meter.step(progress)

    def on_eval_end(self, progress: Progress) -> None:
        """Leave the evaluation out of the rates."""
        self._meter.pause()

    def on_checkpoint(self, progress: Progress) -> None:
        """Leave the start of a checkpoint out of the rates."""
        self._meter.pause()


def shown(rates: Mapping[str, float]) -> list[str]:
    """Return rates as short texts.

    >>> shown({"steps_per_second": 12.345, "tokens_per_second": 54321.0})
    ['12.3 steps/s', '54.3k tokens/s']
    """
    texts = []
    for name, unit in (("steps", "steps/s"), ("tokens", "tokens/s")):
        rate = rates.get(f"{name}_per_second")
        if rate is not None:
            texts.append(f"{rate / 1000:.1f}k {unit}" if rate >= 10_000 else f"{rate:.1f} {unit}")
    return texts
