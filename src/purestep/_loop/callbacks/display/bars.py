"""The progress bar: a live line in a terminal, lines elsewhere. It needs rich."""

from typing import Any

from rich.console import Console

from purestep._core.escaping import printable
from purestep._loop.callbacks.display.console import EscapingConsole
from purestep._loop.callbacks.display.live import TrainingProgress
from purestep._loop.callbacks.printing import number
from purestep._loop.core.progress import Callback, Progress, Run

_SHORT = {"learning_rate": "lr", "grad_norm": "|g|"}


class Bar(Callback):
    """Shows the progress of a run; `progress` makes it."""

    def __init__(self, name: str, console: Console | None):
        self._name, self._console = name, console
        self._shown: TrainingProgress | None = None
        self._rows: dict[str, float] = {}
        self._every = 1

    def on_train_begin(self, run: Run) -> None:
        """Open the live line."""
        console = EscapingConsole(highlight=False) if self._console is None else self._console
        self._every, self._rows = run.log_every, {}
        self._shown = TrainingProgress(console, self._name, run.steps, run.start, run.log_every, 0)
        self._shown.__enter__()
        self._shown.say("the first step")

    def on_step_end(self, progress: Progress) -> None:
        """Redraw the line; outside a terminal print a line at each row."""
        shown = self._shown
        if shown is None:
            return
        shown.step_seconds()
        if progress.row is not None:
            self._rows |= progress.row
        if progress.tokens:
            shown.tokens_per_step = progress.tokens / progress.step
        shown.show(progress.step, _texts(self._rows), milestone=progress.row is not None)

    def on_eval_end(self, progress: Progress) -> None:
        """Show the figures of the evaluation, and print its texts above the line."""
        shown = self._shown
        if shown is None:
            return
        shown.pause()
        self._rows |= progress.evaluated or {}
        for name, texts in progress.texts.items():
            for text in texts:
                shown.console.print(f"step {progress.step}  {name}: {printable(text)}", soft_wrap=True)
        shown.show(progress.step, _texts(self._rows), milestone=bool(progress.evaluated))

    def on_checkpoint(self, progress: Progress) -> None:
        """Leave the start of the checkpoint out of the time of a step."""
        if self._shown is not None:
            self._shown.step_seconds()

    def on_train_end(self, result: Any) -> None:
        """Close the live line."""
        if self._shown is not None:
            self._shown.finish()
            self._shown.__exit__(None, None, None)
            self._shown = None


def _texts(figures: dict[str, float]) -> list[str]:
    """Return the figures as short texts: losses first, then the rest in their order."""
    order = sorted(
        figures, key=lambda name: (name != "loss", not name.endswith("_loss"), name == "grad_norm")
    )
    shown = [name for name in order if not name.endswith("_weight")]
    return [f"{_SHORT.get(name, name)} {number(figures[name])}" for name in shown]
