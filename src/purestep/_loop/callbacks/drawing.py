"""The pictures of a run, made of its history. It needs matplotlib."""

from functools import partial
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk import atomic
from purestep._loop.callbacks.output import Guarded
from purestep._loop.callbacks.pictures import curves
from purestep._loop.callbacks.pictures.curves import Curve, Panel
from purestep._loop.callbacks.pictures.picture import without_spikes
from purestep._loop.callbacks.rates import Metered
from purestep._loop.core.history import History
from purestep._loop.core.progress import Progress, Run

_COLORS = (curves.ORANGE, curves.GREEN, curves.GREY)


class Plots(Metered):
    """Draws a run; `plots` makes it."""

    def __init__(self, path: Path, live: bool):
        super().__init__()
        self.path, self._live = path, live
        self._write = Guarded("plots", path, partial(_write, path))
        self._history = History()
        self._rates = History()

    def on_train_begin(self, run: Run) -> None:
        """Keep the history to draw."""
        super().on_train_begin(run)
        self._history = run.history

    def on_step_end(self, progress: Progress) -> None:
        """Keep the rates."""
        super().on_step_end(progress)
        if progress.row is not None and self.rates:
            self._rates.log(progress.step, self.rates)

    def on_eval_end(self, progress: Progress) -> None:
        """Draw the run so far, if the picture is live."""
        if self._live:
            self.draw()
        super().on_eval_end(progress)

    def on_train_end(self, result: Any) -> None:
        """Draw the whole run."""
        self.draw()

    def draw(self) -> None:
        """Write the picture, whole or not at all, if there is anything to show."""
        panels = panels_of(self._history, self._rates)
        if panels:
            self._write(panels)


def panels_of(history: History, rates: History) -> list[Panel]:
    """Return the panels of a run: losses, learning rate, gradient norm, throughput."""
    rows = list(history)
    losses = [name for name in history.names if name.endswith("_loss")]
    drawn = [_noisy("loss", rows, "loss")] if "loss" in history.names else []
    drawn += [Curve(name, rows, name, color) for name, color in zip(losses, _COLORS, strict=False)]
    panels = [_panel("loss", drawn)] if drawn else []
    if "learning_rate" in history.names:
        panels.append(Panel("learning rate", [Curve("", rows, "learning_rate", curves.BLUE)]))
    if "grad_norm" in history.names:
        panels.append(_panel("gradient norm", [_noisy("", rows, "grad_norm")]))
    unit = "tokens" if "tokens_per_second" in rates.names else "steps"
    speeds = rates.column(f"{unit}_per_second")[1]
    if speeds:
        curve = _noisy("", list(rates), f"{unit}_per_second")
        panels.append(Panel(f"{unit} per second", [curve], limits=(0.0, 1.1 * max(speeds))))
    return panels


def _noisy(label: str, rows: list[dict[str, float]], figure: str) -> Curve:
    return Curve(label, rows, figure, curves.BLUE, noisy=True, each="rows")


def _panel(label: str, drawn: list[Curve]) -> Panel:
    seen = [row[curve.figure] for curve in drawn for row in curve.history if curve.figure in row]
    return Panel(label, drawn, limits=without_spikes(seen))


def _write(path: Path, panels: list[Panel]) -> None:
    atomic.write(path, partial(curves.draw, panels=panels, title="", columns=2))
