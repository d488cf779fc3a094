"""The progress bar: a live line in a terminal, lines elsewhere. It needs rich."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from rich.console import Console

from purestep._core.escaping import encodable, printable, printable_lines
from purestep._loop.callbacks.display.console import EscapingConsole
from purestep._loop.callbacks.display.live import TrainingProgress
from purestep._loop.callbacks.display.status import pause_interval
from purestep._loop.callbacks.intervals import EachStep
from purestep._loop.callbacks.output import Guarded
from purestep._loop.callbacks.printing import is_brief, number
from purestep._loop.core.progress import Progress, Run

_SHORT = {"learning_rate": "lr", "grad_norm": "|g|"}


class Bar(EachStep):
    """Shows the progress of a run; `progress` makes it."""

    def __init__(self, name: str, console: Console | None):
        self._name, self._console = name, console
        self._act = Guarded("progress", "the output", _call)
        self._shown: TrainingProgress | None = None
        self._rows: dict[str, float] = {}
        self._before: tuple[int, int] | None = None  # the last step and its tokens
        self._start = self._first = self._pauses = 0

    def on_train_begin(self, run: Run) -> None:
        """Open the live line."""
        console = BarConsole(highlight=False) if self._console is None else self._console
        self._rows, self._start, self._first, self._pauses = {}, run.start, 0, 0
        self._before = None if run.start else (0, 0)
        # Until an evaluation is made, only the last one is sure to come.
        every = 1 if run.steps is None else max(1, run.steps)
        name = _plain(self._name, console)
        self._shown = TrainingProgress(console, name, run.steps, run.start, every, 0)
        self._act(self._shown.__enter__)
        self._shown.say("the first step")

    def passed(self, progress: Progress) -> None:
        """Time the step."""
        if self._shown is None:
            return
        self._shown.step_seconds()
        step, tokens = self._before or (progress.step, progress.tokens)
        if progress.step > step:
            self._shown.tokens_per_step = (progress.tokens - tokens) / (progress.step - step)
        self._before = (progress.step, progress.tokens)

    def on_step_end(self, progress: Progress) -> None:
        """Redraw the line; outside a terminal print a line at each row."""
        self.passed(progress)
        self._rows |= progress.row or {}
        self._show(progress.step, milestone=progress.row is not None)

    def on_eval_end(self, progress: Progress) -> None:
        """Show the figures of the evaluation, and print its texts above the line."""
        shown = self._shown
        if shown is None:
            return
        shown.pause()
        self._pauses += 1
        self._first = self._first or progress.step
        shown.every = pause_interval(self._start, self._first, progress.step, self._pauses)
        self._rows |= progress.evaluated or {}
        for name, texts in progress.texts.items():
            for text in texts:
                space = "\n" if "\n" in text else " "
                written = f"step {progress.step}  {name}:{space}{text}"
                self._act(_print, shown.console, encodable(printable_lines(written), shown.console.encoding))
        self._show(progress.step, milestone=bool(progress.evaluated))

    def on_checkpoint(self, progress: Progress) -> None:
        """Leave the start of the checkpoint out of the time of a step."""
        if self._shown is not None:
            self._shown.skip()

    def on_train_end(self, result: Any) -> None:
        """Close the live line."""
        if self._shown is not None:
            self._shown.finish()
            self._act(self._shown.__exit__, None, None, None)
            self._shown = None

    def _show(self, step: int, *, milestone: bool) -> None:
        shown = self._shown
        if shown is not None:
            texts = [_plain(text, shown.console) for text in texts_of(self._rows)]
            self._act(_show, shown, step, texts, milestone)


class BarConsole(EscapingConsole):
    """A console whose closed pipe is an error; rich would end the program, and with it the training."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise the `BrokenPipeError` again."""
        raise


def texts_of(figures: Mapping[str, float]) -> list[str]:
    """Return the figures as short texts: losses first, then the rest in their order, without single layers.

    >>> texts_of({"accuracy": 0.5, "learning_rate": 0.01, "eval_loss": 2.0, "eval_weight": 9.0, "loss": 1.0})
    ['loss 1.000', 'eval_loss 2.000', 'accuracy 0.500', 'lr 0.010']
    """
    order = sorted(
        figures, key=lambda name: (name != "loss", not name.endswith("_loss"), name == "grad_norm")
    )
    shown = [name for name in order if is_brief(name) and not name.endswith("_weight")]
    return [f"{_SHORT.get(name, name)} {number(figures[name])}" for name in shown]


def _plain(text: str, console: Console) -> str:
    return encodable(printable(text), console.encoding)


def _print(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, emoji=False)


def _show(shown: TrainingProgress, step: int, texts: list[str], milestone: bool) -> None:
    shown.show(step, texts, milestone=milestone)


def _call(function: Callable[..., object], *args: Any) -> None:
    function(*args)
