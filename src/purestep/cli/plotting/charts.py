"""What there is to draw: charts of curves and heat maps, as plain data."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from purestep._loop.callbacks.pictures.picture import without_spikes
from purestep.cli.plotting.reading import RunFiles, differences

MOST_CHARTS = 40
_POINTS = 2000  # of a curve; a screen is not wider
_COLUMNS = 400  # of a heat map
_MOST_LEVELS = 512
_COUNTS = frozenset({"step", "epoch", "samples", "tokens", "seconds"})
_RATES = ("tokens_per_second", "samples_per_second", "steps_per_second")
_FIRST = ("loss", "learning_rate", "grad_norm")
_LARGEST = 1e100
_SETTING = 40  # characters of a setting in a legend


class Line(NamedTuple):
    """A curve: values by step.

    Attributes:
        run: the number of its run.
        figure: the name of the figure.
        steps: whole numbers that grow.
        values: as many numbers; NaN is a gap.
        noisy: whether a moving average helps to read it.
    """

    run: int
    figure: str
    steps: list[int]
    values: list[float]
    noisy: bool


class Curves(NamedTuple):
    """A chart of curves that share an axis.

    Attributes:
        title: what is drawn.
        lines: the curves.
        limits: a range of the values without rare spikes; `None` for all values.
    """

    title: str
    lines: list[Line]
    limits: tuple[float, float] | None


class Heat(NamedTuple):
    """A heat map: one figure of many layers by step.

    Attributes:
        title: the name of the figure and of the run.
        run: the number of the run.
        layers: the names of the rows, from the first layer to the last.
        steps: of the columns.
        values: a list of numbers for each layer; NaN is a gap.
    """

    title: str
    run: int
    layers: list[str]
    steps: list[int]
    values: list[list[float]]


class Charts(NamedTuple):
    """All charts of some runs.

    Attributes:
        labels: the name of each run, with the settings in which it differs.
        curves: the charts of curves; loss, learning rate, gradient norm, speed and memory come first.
        heats: the heat maps.
        notes: sentences on what was left out.
    """

    labels: list[str]
    curves: list[Curves]
    heats: list[Heat]
    notes: list[str]


def charts_of(runs: Sequence[RunFiles]) -> Charts:
    """Return the charts of some runs."""
    names = list(dict.fromkeys(name for run in runs for name in run.rows.names))
    groups = _groups(names)
    grouped = {name for members in groups.values() for name in members}
    counts = _COUNTS | {f"{name.removesuffix('_loss')}_weight" for name in names if name.endswith("_loss")}
    alone = [name for name in names if name not in counts and name not in grouped]
    charts = [_curves(title, figures, runs) for title, figures in _panels(alone)]
    charts = [chart for chart in charts if any(line.steps for line in chart.lines)]
    notes = [note for run in runs for note in run.notes]
    if len(charts) > MOST_CHARTS:
        left, first = len(charts) - MOST_CHARTS, charts[MOST_CHARTS].title
        notes.append(f"{left} figures after the first {MOST_CHARTS} were left out: {first}, ...")
    heats = [
        heat
        for number, run in enumerate(runs)
        for prefix, members in groups.items()
        if (heat := _heat(prefix, members, number, run, len(runs) > 1)) is not None
    ]
    if not charts and not heats:
        notes.append("there is nothing to draw: the rows have only steps and counts")
    return Charts(labels_of(runs), charts[:MOST_CHARTS], heats[:MOST_CHARTS], notes)


def labels_of(runs: Sequence[RunFiles]) -> list[str]:
    """Return the name of each run, with the settings in which the runs differ."""
    different = differences(runs)
    labels = []
    for number, run in enumerate(runs):
        said = [f"{name}={setting_text(values[number])}" for name, values in different.items() if run.config]
        named = run.name.rpartition("/")[2].split(",")  # a run of a sweep is named by its settings
        said = [text for text in said if text not in named]
        shown = ", ".join(said[:4]) + (", ..." if len(said) > 4 else "")
        labels.append(f"{run.name}: {shown}" if said else run.name)
    return labels


def natural(name: str) -> list[Any]:
    """Return a key that sorts layer 10 after layer 9.

    >>> sorted(["layers.10", "layers.9"], key=natural)
    ['layers.9', 'layers.10']
    """
    # Every second part is a number. Its length, then its digits, sort it however long it is.
    parts = re.split(r"([0-9]+)", name)
    return [_number(part) if place % 2 else part for place, part in enumerate(parts)]


def thinned(steps: list[int], values: list[float], most: int = _POINTS) -> tuple[list[int], list[float]]:
    """Return at most `most` points of a curve: the lowest and the highest of each piece, in their order.

    A spike of one step stays visible. The first and the last point stay.

    >>> thinned(list(range(8)), [0.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], 4)
    ([0, 1, 4, 7], [0.0, 9.0, 0.0, 1.0])
    """
    if len(steps) <= most:
        return steps, values
    kept = {0, len(steps) - 1}
    pieces = max(1, most // 2)
    for piece in range(pieces):
        among = range(piece * len(steps) // pieces, (piece + 1) * len(steps) // pieces)
        finite = [place for place in among if math.isfinite(values[place])] or list(among)
        kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
    places = sorted(kept)
    while len(places) > most:  # the ends may have been added
        del places[1]
    return [steps[place] for place in places], [values[place] for place in places]


def _number(digits: str) -> tuple[int, str]:
    digits = digits.lstrip("0")
    return len(digits), digits


def _groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the figures of layers, named `prefix/layer`, by prefix; a few are drawn as curves instead.

    Layers are numbered, or paths with dots. Others, such as `train/loss`, share no scale.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        prefix, slash, layer = name.partition("/")
        if slash and prefix and layer:
            found.setdefault(prefix, []).append(name)
    return {
        prefix: sorted(members, key=lambda name: (natural(name), name))
        for prefix, members in found.items()
        if len(members) > 2 and any(re.search(r"/.*[0-9.]", name) for name in members)
    }


def _panels(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return the title and the figures of each chart of curves."""
    losses = [name for name in names if name == "loss" or name.endswith("_loss")]
    rate = next((name for name in _RATES if name in names), None)
    memory = [name for name in names if "memory" in name]
    panels = [("loss", sorted(losses, key=lambda name: name != "loss"))] if losses else []
    panels += [(name, [name]) for name in _FIRST[1:] if name in names]
    panels += [(rate, [rate])] if rate else []
    panels += [("memory", memory)] if memory else []
    used = {*losses, *_FIRST, *_RATES, *memory}
    return [*panels, *((name, [name]) for name in names if name not in used)]


def _curves(title: str, figures: Sequence[str], runs: Sequence[RunFiles]) -> Curves:
    lines, seen = [], []
    for number, run in enumerate(runs):
        for figure in figures:
            steps, values = run.rows.column(figure)
            values = list(map(_drawn, values))
            if steps:
                seen += [value for value in values if math.isfinite(value)]
                # A schedule is exact, and an evaluation is an average already.
                noisy = not figure.startswith("eval") and "learning_rate" not in figure
                lines.append(Line(number, figure, *thinned(steps, values), noisy))
    limits = without_spikes(seen)
    if title in _RATES and seen and min(seen) >= 0:
        limits = (0.0, 1.1 * (limits[1] if limits else max(seen)) or 1.0)
    return Curves(title, lines, limits)


def _heat(prefix: str, members: Sequence[str], number: int, run: RunFiles, several: bool) -> Heat | None:
    rows = [row for row in run.rows.rows if any(name in row for name in members)]
    if not rows:
        return None
    there = [name for name in members if any(name in row for row in rows)][:_MOST_LEVELS]
    every = -(-len(rows) // _COLUMNS)
    chosen = rows[::every]
    title = f"{prefix} ({run.name})" if several else prefix
    return Heat(
        title,
        number,
        [name.partition("/")[2] for name in there],
        [int(row["step"]) for row in chosen],
        [[_drawn(row.get(name, math.nan)) for row in chosen] for name in there],
    )


def _drawn(value: float) -> float:
    """Return a value, or infinity for one so large that the range of an axis would overflow."""
    return value if abs(value) < _LARGEST or math.isnan(value) else math.copysign(math.inf, value)


def setting_text(value: Any) -> str:
    """Return a setting as a short text; `-` if the run has none."""
    text = "-" if value is None else str(value)
    return text if len(text) <= _SETTING else f"{text[:_SETTING]}..."
