"""The pictures of a run, made of its history. It needs matplotlib."""

from pathlib import Path
from typing import Any

from purestep._loop.callbacks.pictures import curves
from purestep._loop.callbacks.pictures.curves import Curve, Panel
from purestep._loop.callbacks.rates import Metered
from purestep._loop.core.history import History
from purestep._loop.core.progress import Progress, Run

_COLORS = (curves.ORANGE, curves.GREEN, curves.GREY)


class Plots(Metered):
    """Draws a run; `plots` makes it."""

    def __init__(self, path: Path, live: bool):
        super().__init__()
        self.path, self._live = path, live
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
        """Write the picture, if there is anything to show."""
        panels = panels_of(self._history, self._rates)
        if panels:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            curves.draw(self.path, panels, "")


def panels_of(history: History, rates: History) -> list[Panel]:
    """Return the panels of a run: losses, learning rate, gradient norm, throughput."""
    rows = list(history)
    losses = [name for name in history.names if name.endswith("_loss")]
    drawn = [Curve("loss", rows, "loss", curves.BLUE, noisy=True)] if "loss" in history.names else []
    drawn += [Curve(name, rows, name, color) for name, color in zip(losses, _COLORS, strict=False)]
    panels = [Panel("loss", drawn)] if drawn else []
    for name, label in (("learning_rate", "learning rate"), ("grad_norm", "gradient norm")):
        if name in history.names:
            panels.append(Panel(label, [Curve(label, rows, name, curves.BLUE, noisy=name == "grad_norm")]))
    unit = "tokens" if "tokens_per_second" in rates.names else "steps"
    if len(rates):
        speed = [Curve(f"{unit} per second", list(rates), f"{unit}_per_second", curves.BLUE)]
        panels.append(Panel(f"throughput ({unit} per second)", speed))
    return panels
