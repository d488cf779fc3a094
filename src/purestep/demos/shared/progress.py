"""What a run shows while it runs: a live line on a terminal, a line at each milestone elsewhere."""

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from purestep.demos.shared.status import milestones_left, seconds_left, status_line, typical

RECENT = 50  # steps whose time counts


class TrainingProgress:
    """A context manager to make steps in.

    Args:
        console: where to show; a quiet one shows nothing.
        name: of what is trained.
        total: the last step.
        start: the steps made before.
        every: steps from one milestone to the next.
        tokens_per_step: for tokens a second.
        pause_steps: about how many steps take as long as the measurement at a milestone, until one is timed.
        after_steps: about how many steps take as long as what follows the last one.
    """

    def __init__(
        self,
        console: Console,
        name: str,
        total: int,
        start: int,
        every: int,
        tokens_per_step: int,
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
        """Leave the last line standing."""
        if self._is_live:
            self._live.stop()

    def step_seconds(self) -> float:
        """Return the time since the last call or `pause`, and note it as that of a step."""
        seconds = self._lap()
        # The first, which compiles, stays in front.
        self._seconds = [*self._seconds[:1], *self._seconds[1:][-RECENT:], seconds]
        return seconds

    def pause(self) -> None:
        """Note the time since the last step as that of a measurement."""
        self._pauses.append(self._lap())

    def tokens_per_second(self) -> float:
        """Return the rate over the last steps."""
        return self.tokens_per_step / (typical(self._seconds) or float("inf"))

    def say(self, text: str) -> None:
        """Show what is being done in place of figures."""
        self._figures = (text,)

    def show(self, step: int, figures: Sequence[str], *, milestone: bool) -> None:
        """Show the figures of a step; a milestone also leaves a line where there is no live one."""
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
        self._figures = (*figures, f"{self.tokens_per_second() / 1000:.1f}k tok/s")
        if milestone and not self._is_live:
            line = status_line(10**6, self.name, step, self.total, self._left, self._figures)
            self.console.print(f"{line.head}{line.tail}", soft_wrap=True)

    def finish(self) -> None:
        """Show that nothing is left to do."""
        self._left = 0.0

    def _lap(self) -> float:
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        return seconds

    def _line(self) -> Text:
        """Return the line of this moment; called from the thread that redraws it."""
        left = None if self._left is None else self._left - (time.perf_counter() - self._shown)
        line = status_line(
            self.console.width, self.name, self._step, self.total, left, self._figures, signs=self._signs
        )
        parts = (line.head, (line.done, "green"), (line.ahead, "dim"), line.tail)
        return Text.assemble(*parts, no_wrap=True, overflow="crop")
