"""Rates: steps, samples and tokens a second, and callbacks that measure them."""

from collections.abc import Mapping
from typing import NamedTuple

from purestep._loop.callbacks.intervals import EachStep
from purestep._loop.core.progress import Progress, Run


class Counts(NamedTuple):
    """What was done in a time.

    Attributes:
        seconds: of making steps.
        steps: the number of steps.
        samples: the number of training examples.
        tokens: the number of tokens.
    """

    seconds: float = 0.0
    steps: int = 0
    samples: int = 0
    tokens: int = 0

    def plus(self, now: "Counts", before: "Counts") -> "Counts":
        """Return these counts with what was done between two moments."""
        return Counts(
            self.seconds + now.seconds - before.seconds,
            self.steps + now.steps - before.steps,
            self.samples + now.samples - before.samples,
            self.tokens + now.tokens - before.tokens,
        )


def rates(counts: Counts) -> dict[str, float]:
    """Return steps, samples and tokens a second; nothing without time, and no tokens a second without tokens.

    >>> rates(Counts(2.0, 10, 80, 0))
    {'steps_per_second': 5.0, 'samples_per_second': 40.0}
    """
    if counts.seconds <= 0:
        return {}
    named = zip(Counts._fields[1:], counts[1:], strict=True)
    return {f"{name}_per_second": number / counts.seconds for name, number in named if number}


class Meter:
    """Counts the steps whose time is known, in seconds of the run.

    The loop sends step k + 1 to the device before it hands out step k. The time from step k to step k + 1 is
    that of a step, with three exceptions, which do not count:

    1. The first step of the process, which is compiled.
    2. A step after an evaluation or a checkpoint: it was made meanwhile.
    3. The last step: nothing was built and sent after it, so that it seems to take no time.
    """

    def __init__(self) -> None:
        self._counted = Counts()  # since the last lap
        self._before: Counts | None = None
        self._hidden = False

    def step(self, progress: Progress) -> None:
        """Note that a step has ended."""
        now = Counts(progress.seconds, progress.step, progress.samples, progress.tokens)
        if self._before is not None and not self._hidden and not progress.alone:
            self._counted = self._counted.plus(now, self._before)
        self._before, self._hidden = now, False

    def pause(self) -> None:
        """Note that something other than a step has ended."""
        self._hidden = True

    def lap(self) -> dict[str, float]:
        """Return the rates since the last lap."""
        found, self._counted = rates(self._counted), Counts()
        return found


class Metered(EachStep):
    """A callback with a meter; `rates` are those of the last row, empty if no step since then counts."""

    def __init__(self) -> None:
        self._meter = Meter()
        self.rates: dict[str, float] = {}

    def on_train_begin(self, run: Run) -> None:
        """Start anew."""
        self._meter, self.rates = Meter(), {}

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
