"""What a run shows while it runs: a live bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class TrainingProgress:
    """A context manager to show steps in; call it with the figures of each step.

    Args:
        console: where to show; a quiet one shows nothing.
        total: the last step.
        start: the steps made before.
        tokens_per_step: for tokens a second.
    """

    def __init__(self, console: Console, total: int, start: int, tokens_per_step: int):
        self.console, self.total, self.tokens_per_step = console, total, tokens_per_step
        columns = (MofNCompleteColumn(), BarColumn(bar_width=None), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal, expand=True)
        self._task = self._bar.add_task("compiling the step", total=total, completed=start)
        self._clock = time.perf_counter()
        self._seconds: list[float] = []

    def __enter__(self) -> "TrainingProgress":
        """Start the live display."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Leave the last line standing."""
        self._bar.stop()

    def step_seconds(self) -> float:
        """Return the time since the last call or `pause`, and note it."""
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        self._seconds = [*self._seconds[-49:], seconds]
        return seconds

    def pause(self) -> None:
        """Leave out what happened since the last step: an evaluation, a checkpoint."""
        self._clock = time.perf_counter()

    def tokens_per_second(self) -> float:
        """Return the rate over the last steps; their median, so that the compiling one hardly counts."""
        return self.tokens_per_step / sorted(self._seconds)[len(self._seconds) // 2] if self._seconds else 0.0

    def show(self, step: int, figures: Mapping[str, Any], *, milestone: bool) -> None:
        """Show the figures of a step; a milestone also leaves a line where there is no live bar."""
        rate = self.tokens_per_second()
        left = (self.total - step) * self.tokens_per_step / rate if rate else 0.0
        text = describe(figures, rate, left)
        self._bar.update(self._task, completed=step, description=text)
        if milestone and not self.console.is_terminal:
            self.console.print(f"step {step}/{self.total}  {text}", highlight=False, soft_wrap=True)


def describe(figures: Mapping[str, Any], tokens_per_second: float, seconds_left: float) -> str:
    """Return one line: loss, validation loss, learning rate, gradient norm, speed, time left."""
    validation = figures.get("validation_loss")
    return (
        f"loss {figures['loss']:.3f}  val {'  -  ' if validation is None else f'{validation:.3f}'}  "
        f"lr {figures['learning_rate']:.1e}  |g| {figures['grad_norm']:.2f}  "
        f"{tokens_per_second / 1000:.1f}k tok/s  {int(seconds_left) // 60}:{int(seconds_left) % 60:02d} left"
    )
