"""Charts as a PNG or an SVG. It needs matplotlib."""

import math
import unicodedata
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from purestep._checkpoint.disk import atomic
from purestep._core.escaping import printable
from purestep._loop.callbacks.pictures.curves import FEW
from purestep._loop.callbacks.pictures.picture import smoothing_reach
from purestep.cli.plotting.charts import Charts, Curves, Heat, Line
from purestep.cli.plotting.scales import COLORS, STYLES, compact

_WIDTH, _HEIGHT = 5.4, 3.6  # inches of a chart
_TICKS = 12  # names of layers beside a heat map
_LONGEST, _HIGHEST = 90, 36  # columns of a label, and of one along a vertical axis
# A dollar sign is text, not mathematics. Fixed names within an SVG give the same file for the same run.
_SETTINGS: Any = {"text.parse_math": False, "svg.hashsalt": "purestep", "svg.fonttype": "none"}


def draw(path: Path, charts: Charts) -> None:
    """Write a picture, whole or not at all; the ending of the path decides the format.

    Raises:
        OSError: if it cannot be written.
    """
    atomic.write(path, partial(_save, charts=charts, kind=path.suffix[1:].lower()))


def _save(path: Path, charts: Charts, kind: str) -> None:
    with warnings.catch_warnings(), matplotlib.rc_context(_SETTINGS):
        warnings.simplefilter("ignore")  # a font lacks a character of a name
        figure = _figure(charts)
        # Without a date the same run gives the same file.
        figure.savefig(path, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _figure(charts: Charts) -> Figure:
    count = max(len(charts.curves), len(charts.heats), 1)
    across = 1 if count == 1 else 2 if count <= 4 else 3
    downs = [-(-len(each) // across) for each in (charts.curves, charts.heats)]
    several = len(charts.labels) > 1
    under = 0.25 * len(charts.labels) + 0.2 if several else 0.0
    heights = [_HEIGHT * down for down in downs] + [under]
    figure = Figure(
        figsize=(max(8.0, _WIDTH * across), max(sum(heights), 2.0)), dpi=110, layout="constrained"
    )
    shown = [height for height in heights if height] or [1.0]
    # In a figure of their own, the heat maps do not narrow the curves above them.
    parts = iter(figure.subfigures(len(shown), 1, height_ratios=shown, squeeze=False).flat)
    for down, each in zip(downs, (charts.curves, charts.heats), strict=True):
        if down:
            part = next(parts)
            places = list(part.subplots(down, min(across, len(each)), squeeze=False).flat)
            for axes, chart in zip(places, each, strict=False):
                if isinstance(chart, Curves):
                    _draw_curves(axes, chart, several)
                else:
                    _draw_heat(part, axes, chart)
            for axes in places[len(each) :]:
                axes.remove()
    if several:
        handles = [Line2D([], [], color=_color(run), linewidth=2.2) for run in range(len(charts.labels))]
        labels = list(map(_label, charts.labels))
        next(parts).legend(handles, labels, loc="upper left", frameon=False, borderaxespad=0.2)
    return figure


def _draw_curves(axes: Axes, chart: Curves, several: bool) -> None:
    figures = list(dict.fromkeys(line.figure for line in chart.lines))
    keys: dict[str, Any] = {}
    for line in chart.lines:
        place = figures.index(line.figure)
        color = _color(line.run if several else place)
        style: Any = STYLES[place % len(STYLES)] if several else "-"
        drawn = _draw_line(axes, line, color, style, chart.limits)
        keys[line.figure] = Line2D([], [], color="#333333", linestyle=style) if several else drawn
    if chart.limits:
        axes.set_ylim(*chart.limits)
    axes.set(xlabel="step", ylabel=_label(chart.title, _HIGHEST))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, place: compact(value)))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(alpha=0.25)
    if len(figures) > 1:
        axes.legend([keys[name] for name in figures], list(map(_label, figures)), frameon=False)


def _draw_line(axes: Axes, line: Line, color: str, style: Any, limits: tuple[float, float] | None) -> Any:
    values, reach = line.values, smoothing_reach(len(line.values)) if line.noisy else 0
    if reach:
        axes.plot(line.steps, values, color=color, alpha=0.25, linewidth=0.7)
        values = trend(values, reach, limits)
    marker = "o" if len(line.steps) <= FEW else None
    options: Any = {"marker": marker, "markersize": 4, "linewidth": 1.7, "linestyle": style}
    return axes.plot(line.steps, values, color=color, **options)[0]


def _draw_heat(part: Any, axes: Axes, heat: Heat) -> None:
    """Draw a heat map; its colors are the logarithms of the values, if these are positive."""
    finite = [value for row in heat.values for value in row if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    logarithmic = 1e-300 < low < high / 3 and high < 1e300
    norm: Any = "log" if logarithmic else None
    if not logarithmic and not math.isfinite(high - low):
        low, high = low / 4, high / 4
    # One more edge than columns: a column begins at its step.
    last = heat.steps[-1] + (heat.steps[-1] - heat.steps[0]) / max(1, len(heat.steps) - 1)
    edges = [*heat.steps, max(last, heat.steps[-1] + 1)]
    values = [[value if math.isfinite(value) else math.nan for value in row] for row in heat.values]
    limits: Any = {} if logarithmic else {"vmin": low, "vmax": max(high, low + 1e-12)}
    mesh = axes.pcolormesh(edges, range(len(values) + 1), values, norm=norm, cmap="viridis", **limits)
    every = -(-len(heat.layers) // _TICKS)
    axes.set_yticks(
        [place + 0.5 for place in range(0, len(heat.layers), every)],
        [_label(name, 28) for name in heat.layers[::every]],
    )
    axes.invert_yaxis()  # the first layer is on top
    axes.set_xlabel("step")
    axes.set_title(_label(heat.title), fontsize="medium")
    axes.set_facecolor("#dddddd")
    bar = part.colorbar(mesh, ax=axes)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, place: compact(value)))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())


def trend(values: Sequence[float], reach: int, limits: tuple[float, float] | None) -> list[float]:
    """Return centred moving averages, without the values beyond the limits; a gap stays a gap.

    >>> trend([0.0, 3.0, 900.0, 6.0, float("nan"), 5.0], 1, (0.0, 9.0))
    [0.0, 1.5, 4.5, 6.0, nan, 5.0]
    """
    low, high = limits or (-math.inf, math.inf)
    found = []
    for place, value in enumerate(values):
        near = min(reach, place, len(values) - 1 - place)
        window = values[place - near : place + near + 1]
        among = [each for each in window if math.isfinite(each) and low <= each <= high]
        found.append(sum(among) / len(among) if among and not math.isnan(value) else math.nan)
    return found


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _columns(character: str) -> int:
    """Return 2 for a wide character, such as a Chinese one, otherwise 1."""
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _label(text: str, most: int = _LONGEST) -> str:
    """Return text for a label. Matplotlib would leave out a label that begins with an underscore."""
    shown = printable(text[: most + 1])
    if sum(map(_columns, shown)) > most:
        ends = accumulate(map(_columns, shown))
        shown = f"{shown[: sum(end <= most - 3 for end in ends)]}..."
    return f" {shown}" if shown.startswith("_") else shown
