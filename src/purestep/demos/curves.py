"""Pictures of several curves side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from purestep.demos.picture import smoothed

BLUE, ORANGE, GREEN, GREY = "#1f5fa8", "#d1622b", "#2e8b57", "#555555"


class Curve(NamedTuple):
    """One figure of a history, by step.

    Attributes:
        label: for the legend.
        history: rows with `step` and, in some, the figure.
        figure: its name in the rows.
        color: of the line.
        noisy: whether it is one batch's: then drawn thin, and smoothed over it.
    """

    label: str
    history: Sequence[Mapping[str, Any]]
    figure: str
    color: str
    noisy: bool = False


class Panel(NamedTuple):
    """A pair of axes.

    Attributes:
        ylabel: what is drawn, with its unit.
        curves: what to draw.
        levels: names and heights of horizontal lines.
        limits: of the y axis.
    """

    ylabel: str
    curves: Sequence[Curve]
    levels: Mapping[str, float] = {}
    limits: tuple[float, float] | None = None


def draw(path: Path, panels: Sequence[Panel], title: str) -> None:
    """Draw panels side by side into a PNG."""
    figure = Figure(figsize=(5.2 * len(panels), 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for curve in panel.curves:
            rows = [row for row in curve.history if curve.figure in row]
            steps, values = [row["step"] for row in rows], [row[curve.figure] for row in rows]
            if curve.noisy:
                axes.plot(steps, values, color=curve.color, alpha=0.25, linewidth=0.8)
                axes.plot(steps, smoothed(values, 0.8), color=curve.color, linewidth=1.8, label=curve.label)
            else:
                axes.plot(steps, values, color=curve.color, marker="o", linewidth=1.8, label=curve.label)
        for name, value in panel.levels.items():
            axes.axhline(value, color=GREY, linestyle="--", linewidth=1.2, label=f"{name}: {value:.3f}")
        if panel.limits:
            axes.set_ylim(*panel.limits)
        axes.set(xlabel="step", ylabel=panel.ylabel)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.savefig(path)
