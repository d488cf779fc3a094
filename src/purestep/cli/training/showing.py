"""What `train` shows: the run, a line of progress, and its figures."""

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from purestep._loop.callbacks.display.console import EscapingConsole
from purestep._loop.callbacks.display.live import TrainingProgress
from purestep._loop.core.progress import Callback, Progress, Run
from purestep.demos.shared import running


def console() -> Console:
    """Return the console of a run."""
    return EscapingConsole(file=sys.stdout, highlight=False)


def say(screen: Console, text: str) -> None:
    """Print text; only a terminal wraps it."""
    running.say(screen, text)


def report(screen: Console, figures: Mapping[str, Any]) -> None:
    """Print one line a figure."""
    running.say(screen, "\n".join(["", *running.table(figures)]))


class Shown(Callback):
    """A live line on a terminal; elsewhere a line after each evaluation and at the end.

    Args:
        screen: the console.
        every: the interval of evaluations.
        tokens: the tokens of a step.
    """

    def __init__(self, screen: Console, every: int, tokens: int):
        self._screen, self._every, self._tokens = screen, every, tokens
        self._progress: TrainingProgress | None = None
        self._texts: list[str] = []
        self._measured: str | None = None

    def on_train_begin(self, run: Run) -> None:
        """Show the line."""
        total = run.start if run.steps is None else run.steps
        self._progress = TrainingProgress(
            self._screen, "train", max(total, 1), run.start, self._every, self._tokens
        )
        self._progress.__enter__()
        self._progress.say("compiling")

    def on_step_end(self, progress: Progress) -> None:
        """Count the step, and show a row of figures."""
        assert self._progress is not None
        self._progress.step_seconds()
        if progress.row is not None:
            self._texts = [
                f"{label} {progress.row[name]:.{digits}}"
                for name, label, digits in (
                    ("loss", "loss", "4f"), ("learning_rate", "lr", "1e"), ("grad_norm", "|g|", "2f"),
                )
                if name in progress.row
            ]  # fmt: skip
            self._show(progress.step, milestone=False)

    def on_eval_end(self, progress: Progress) -> None:
        """Show the figures of an evaluation."""
        assert self._progress is not None
        figures = progress.evaluated or {}
        if "eval_loss" in figures:
            self._measured = f"val {figures['eval_loss']:.4f}"
        self._progress.pause()
        self._show(progress.step, milestone=True)

    def on_train_end(self, result: Any) -> None:
        """End the line."""
        self.close()

    def close(self) -> None:
        """End the line; its last state stays visible."""
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None

    def _show(self, step: int, *, milestone: bool) -> None:
        assert self._progress is not None
        first, *others = self._texts or [""]
        texts = [first, self._measured or "", *others]
        self._progress.show(step, [text for text in texts if text], milestone=milestone)
