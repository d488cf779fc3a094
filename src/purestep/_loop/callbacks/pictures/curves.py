"""Panels of curves, side by side in a PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from purestep._loop.callbacks.pictures.picture import smoothed, smoothing_reach, whole_ticks

BLUE, ORANGE, GREEN, GREY = "#1f5fa8", "#d1622b", "#2e8b57", "#555555"
FEW = 40  # points; curves of at most so many points get markers


class Curve(NamedTuple):
    """One figure of a history, by step.

    Attributes:
        label: the name in the legend.
        history: rows with `step`; rows without the figure are skipped.
        figure: the name of the figure in the rows.
        color: the color of the line.
        noisy: draw the values thin, and a smoothed curve over them.
        band: the names of a lower and an upper figure; the area between them is shaded.
        each: what a value is, for the legend of a noisy curve.
    """

    label: str
    history: Sequence[Mapping[str, Any]]
    figure: str
    color: str
    noisy: bool = False
    band: tuple[str, str] | None = None
    each: str = "batches"


class Panel(NamedTuple):
    """A pair of axes.

    Attributes:
        ylabel: the label of the y axis, with the unit.
        curves: the curves.
        levels: names and heights of horizontal lines.
        limits: the limits of the y axis.
    """

    ylabel: str
    curves: Sequence[Curve]
    levels: Mapping[str, float] = {}
    limits: tuple[float, float] | None = None


def draw(path: Path, panels: Sequence[Panel], title: str, *, columns: int | None = None) -> None:
    """Draw panels into a PNG: side by side, or in rows of so many columns."""
    across = min(len(panels), columns or len(panels))
    down = -(-len(panels) // across)
    width = 8.0 if across == 1 else 5.4 * across
    figure = Figure(figsize=(width, 5.2 if down == 1 else 4.0 * down), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False)
    places = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, panel in zip(places, panels, strict=False):
        _draw_panel(axes, panel)
    for axes in places[len(panels) :]:
        axes.remove()
    figure.savefig(path, format="png")


def _draw_panel(axes: Axes, panel: Panel) -> None:
    last = 1
    for curve in panel.curves:
        _draw_curve(axes, curve)
        last = max([last, *(row["step"] for row in curve.history)])
    for (name, value), style in zip(panel.levels.items(), ("--", ":", "-."), strict=False):
        axes.axhline(value, color=GREY, linestyle=style, linewidth=1.4, label=f"{name}: {value:.3f}")
    if panel.limits:
        axes.set_ylim(*panel.limits)
    axes.set_ylabel(panel.ylabel, parse_math=False)  # a name with $ is no formula
    axes.set(xlabel="step", xlim=(-0.02 * last, 1.02 * last))
    axes.set_xticks(whole_ticks(last))
    axes.grid(alpha=0.25)
    # A single line needs no legend: the y axis names it.
    if len(axes.get_legend_handles_labels()[1]) > 1:
        # Below the axes, the legend covers no curve.
        legend = axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13))
        for text in legend.get_texts():
            text.set_parse_math(False)


def _draw_curve(axes: Axes, curve: Curve) -> None:
    rows = [row for row in curve.history if curve.figure in row]
    steps, values = [row["step"] for row in rows], [row[curve.figure] for row in rows]
    label, reach = curve.label, smoothing_reach(len(rows))
    if curve.noisy and reach:
        axes.plot(steps, values, color=curve.color, alpha=0.3, linewidth=0.8)
        values, label = smoothed(values, reach), f"{label} (mean of {2 * reach + 1} {curve.each}; thin: each)"
    if curve.band:
        low, high = ([row[name] for row in rows] for name in curve.band)
        axes.fill_between(steps, low, high, color=curve.color, alpha=0.18, linewidth=0)
    marker = "o" if len(rows) <= FEW else None
    axes.plot(steps, values, color=curve.color, marker=marker, linewidth=1.8, label=label)
