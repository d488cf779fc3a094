"""The picture of a benchmark: horizontal bars of medians with quartiles, and the physical limit as a line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness.statistics import Spread

_COLOURS = {
    "purestep": "#2f6f9f",
    "MLX": "#7f8fa6",
    "torch": "#d97b4a",
    "JAX": "#6fa287",
    "other": "#b5a27a",
}
_BAR = 0.34  # inches a bar


class Bar(NamedTuple):
    """A contestant.

    Attributes:
        name: of the contestant; its first word decides the group, which has one colour.
        spread: the median and the quartiles, in the unit of the panel.
        label: at the end of the bar, the ratio to the panel's base.
    """

    name: str
    spread: Spread
    label: str = ""


class Panel(NamedTuple):
    """One diagram.

    Attributes:
        title: above the diagram.
        unit: below the axis; it says what is better.
        bars: from top to bottom within a group.
        limit: what the machine allows, in the same unit.
        limit_label: what the limit is.
    """

    title: str
    unit: str
    bars: list[Bar]
    limit: float | None = None
    limit_label: str = ""


def group(name: str) -> str:
    """Return the group of a contestant.

    >>> [group(name) for name in ("purestep, packed", "mlx.optimizers", "torch fused", "JAX + optax")]
    ['purestep', 'MLX', 'torch', 'JAX']
    """
    word = name.lower()
    if word.startswith(("purestep", "ps.")):
        return "purestep"
    for known, beginnings in {"MLX": ("mlx", "mx.", "by hand"), "torch": ("torch",)}.items():
        if word.startswith(beginnings):
            return known
    return "JAX" if word.startswith(("jax", "optax", "flax", "orbax")) else "other"


def bars(seconds: Mapping[str, Sequence[float]], base: str | None = None, *, scale: float = 1e3) -> list[Bar]:
    """Return a bar for each contestant that was measured, with its ratio to the base, which is 1.00.

    A ratio is the median of ratios of turns side by side, as in the tables.
    """
    found = []
    for name, values in seconds.items():
        if values:
            over = seconds.get(base) if base else None
            label = f"{Spread.of_ratios(values, over).median:.2f}" if over else ""
            found.append(Bar(name, Spread(*(scale * x for x in Spread.of(values))), label))
    return found


def sizes(title: str, peaks: Mapping[str, float | None], base: str) -> Panel:
    """Return a panel of peaks of memory in bytes; contestants that cannot tell theirs are left out."""
    known = {name: float(peak) for name, peak in peaks.items() if peak}
    unit, scale = ("GB", 1e-9) if max(known.values(), default=0.0) >= 1e9 else ("MB", 1e-6)
    found = bars({name: [peak] for name, peak in known.items()}, base, scale=scale)
    return Panel(title, f"{unit}, less is better", found)


def grouped(found: Sequence[Bar]) -> list[Bar]:
    """Return the bars sorted by group, in the order of the first of each group."""
    order = list(dict.fromkeys(group(bar.name) for bar in found))
    return sorted(found, key=lambda bar: order.index(group(bar.name)))


def draw(panels: Sequence[Panel], path: Path, *, title: str, below: Sequence[str] = ()) -> None:
    """Write the panels below each other as PNG; nothing if no panel has a bar.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    panels = [panel for panel in panels if panel.bars]
    if not panels:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [0.75 + _BAR * len(panel.bars) for panel in panels]
    figure = Figure(figsize=(8.5, sum(heights) + 0.5 + 0.25 * len(below) + 0.3 * len(panels)), dpi=120)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", h_pad=0.08)
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        _panel(axis, panel)
    if below:
        figure.supxlabel("\n".join(below), fontsize=7, color="#666666", x=0.01, ha="left")
    figure.savefig(path)


def _panel(axis: Any, panel: Panel) -> None:
    found = grouped(panel.bars)
    largest = max(bar.spread.high for bar in found)
    for place, (_, spread, label) in enumerate(found):
        median, low, high = spread
        colour = _COLOURS[group(found[place].name)]
        axis.barh(place, median, color=colour, height=0.68, zorder=2)
        if high > low:
            around = [[median - low], [high - median]]
            axis.errorbar(median, place, xerr=around, color="#333333", lw=1, capsize=2.5, zorder=3)
        text = _number(median) + (f"   (x {label})" if label else "")
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}  # the limit may cross the label
        axis.text(high + 0.012 * largest, place, text, va="center", fontsize=8, bbox=behind, zorder=5)
    if panel.limit is not None:
        axis.axvline(panel.limit, color="#b3262e", lw=1.2, ls="--", zorder=4)
        label = f"{panel.limit_label}: {_number(panel.limit)}"
        at = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right", "va": "bottom"}
        axis.annotate(label, (1, 1), (0, 4), color="#b3262e", fontsize=8, **at)
    axis.set_title(panel.title, fontsize=9, loc="left", pad=18 if panel.limit is not None else 6)
    axis.set_yticks(range(len(found)), [bar.name for bar in found], fontsize=8)
    axis.set_ylim(len(found) - 0.4, -0.6)
    axis.set_xlim(0, 1.18 * max(largest, panel.limit or 0.0))
    axis.set_xlabel(panel.unit, fontsize=8)
    axis.tick_params(labelsize=8, length=2)
    axis.grid(axis="x", color="#dddddd", lw=0.6, zorder=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
