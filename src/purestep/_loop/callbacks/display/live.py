"""The progress of a run: a live line on a terminal, one line per milestone elsewhere."""

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from purestep._loop.callbacks.display.status import milestones_left, seconds_left, status_line, typical

RECENT = 50  # the last steps, whose times are used


class TrainingProgress:
    """A context manager that shows the progress of the steps made in it.

    Args:
        console: the console; a quiet one shows nothing.
        name: the name of the phase.
        total: the number of the last step, or `None` if it is not known.
        start: the number of steps made before.
        every: the number of steps from one measurement to the next; it may be changed.
        tokens_per_step: the number of tokens of a step, for the rate; 0 shows steps a second.
        pause_steps: a guess of the time of a measurement, in steps, used until one is timed.
        after_steps: a guess of the time of the work after the last step, in steps.
    """

    def __init__(
        self,
        console: Console,
        name: str,
        total: int | None,
        start: int,
        every: int,
        tokens_per_step: float,
        *,
        pause_steps: float = 0.0,
        after_steps: float = 0.0,
    ):
        self.console, self.name, self.total, self.every = console, name, total, every
        self.tokens_per_step, self._guess, self._after = tokens_per_step, pause_steps, after_steps
        self._step, self._figures = start, ("starting",)
        self._left: float | None = None
        self._signs = "━╌" if console.encoding.startswith("utf") else "#-"
        self._is_live = console.is_terminal and not console.is_dumb_terminal and not console.quiet
        self._live = Live(console=console, get_renderable=self._line, refresh_per_second=10)
        self._clock = self._shown = time.perf_counter()
        self._seconds: list[float] = []
        self._pauses: list[float] = []

    def __enter__(self) -> "TrainingProgress":
        """Start the live line."""
        if self._is_live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Stop the live line; its last state stays visible."""
        if self._is_live:
            self._live.stop()

    def step_seconds(self) -> float:
        """Return the seconds since the last call or `pause`, and record them as the time of a step."""
        seconds = self._lap()
        # The first time, which includes compilation, stays first.
        self._seconds = [*self._seconds[:1], *self._seconds[1:][-RECENT:], seconds]
        return seconds

    def pause(self) -> None:
        """Record the time since the last step as the time of a measurement."""
        self._pauses.append(self._lap())

    def skip(self) -> None:
        """Leave out the time since the last step."""
        self._lap()

    def tokens_per_second(self) -> float:
        """Return the rate of the last steps."""
        return self.tokens_per_step / (typical(self._seconds) or float("inf"))

    def say(self, text: str) -> None:
        """Show a text in place of the figures."""
        self._figures = (text,)

    def show(self, step: int, figures: Sequence[str], *, milestone: bool) -> None:
        """Show the figures of a step. Without a live line, print one line at each milestone."""
        self._left = None
        if self.total is not None:
            self._left = seconds_left(
                typical(self._seconds),
                self.total - step,
                typical(self._pauses),
                milestones_left(step, self.total, self.every),
                self._guess,
            )
        if self._left is not None and self._after:
            self._left += self._after * (typical(self._seconds) or 0.0)
        self._step, self._shown = step, time.perf_counter()
        self._figures = (*figures, self._speed())
        if milestone and not self._is_live:
            line = status_line(10**6, self.name, step, self.total, self._left, self._figures)
            self.console.print(f"{line.head}{line.tail}", soft_wrap=True)

    def finish(self) -> None:
        """Show 0:00 as the time left."""
        self._left = 0.0

    def _speed(self) -> str:
        if self.tokens_per_step:
            return f"{self.tokens_per_second() / 1000:.1f}k tok/s"
        return f"{1 / (typical(self._seconds) or float('inf')):.1f} steps/s"

    def _lap(self) -> float:
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        return seconds

    def _line(self) -> Text:
        """Return the current line; called from the thread that redraws it."""
        left = None if self._left is None else self._left - (time.perf_counter() - self._shown)
        line = status_line(
            self.console.width, self.name, self._step, self.total, left, self._figures, signs=self._signs
        )
        parts = (line.head, (line.done, "green"), (line.ahead, "dim"), line.tail)
        return Text.assemble(*parts, no_wrap=True, overflow="crop")
