"""The picture of a profile. It needs matplotlib."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from purestep._checkpoint.disk import atomic
from purestep._loop.profiling.clock import OTHER, StepTimes
from purestep._loop.profiling.figures import limit, names_in, shorten, summary

_COLORS = {
    "data": "#2e8b57",
    "build": "#1f5fa8",
    "dispatch": "#6fa8dc",
    "queue": "#c9b79c",
    "wait": "#e3d9c6",
    "loop body": "#d1622b",
    "callbacks": "#d1622b",
    "evaluation": "#8e4fa8",
    "checkpoint": "#c23b5a",
    OTHER: "#555555",
}
_MORE = (  # for parts of the user's own
    "#e0a800",
    "#17a2a2",
    "#a85f3d",
    "#7d8c1f",
    "#e07ab0",
    "#274b8a",
    "#9ad04a",
    "#6b4c9a",
    "#f2b88a",
    "#0b6e4f",
)


def draw(path: Path, rows: Sequence[StepTimes]) -> None:
    """Draw the parts of each step and their shares; write the picture whole or not at all."""
    atomic.write(path, partial(_draw, rows=rows))


def _draw(path: Path, rows: Sequence[StepTimes]) -> None:
    names = names_in(rows)
    own = [name for name in names if name not in _COLORS]
    colors = {**_COLORS, **{name: _MORE[number % len(_MORE)] for number, name in enumerate(own)}}
    figure = Figure(figsize=(10.8, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(limit(summary(rows)), fontsize=11, parse_math=False)
    steps, shares = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_steps(steps, rows, names, colors)
    _draw_shares(shares, rows, names, colors)
    figure.savefig(path, format="png")


def _draw_steps(axes: Axes, rows: Sequence[StepTimes], names: list[str], colors: dict[str, str]) -> None:
    numbers, base = [row.step for row in rows], [0.0] * len(rows)
    for name in names:
        heights = [1000 * row.parts.get(name, 0.0) for row in rows]
        axes.bar(numbers, heights, 0.9, bottom=base, color=colors[name], label=name)
        base = [below + height for below, height in zip(base, heights, strict=True)]
    axes.set(xlabel="step", ylabel="milliseconds", xlim=(numbers[0] - 0.6, numbers[-1] + 0.6))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)


def _draw_shares(axes: Axes, rows: Sequence[StepTimes], names: list[str], colors: dict[str, str]) -> None:
    found = summary(rows)
    for place, name in enumerate(names):
        part = found[name]
        axes.barh(place, 100 * part.share, color=colors[name])
        text = f" {100 * part.share:.1f} %, {1000 * part.mean:.3g} ms a step"
        axes.text(100 * part.share, place, text, va="center", fontsize=9)
    axes.set_yticks(range(len(names)), [shorten(name) for name in names], parse_math=False)
    axes.invert_yaxis()
    axes.set(xlabel="per cent of the time", xlim=(0, 175), xticks=range(0, 101, 20))
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
