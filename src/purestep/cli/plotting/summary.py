"""Runs in a terminal: a line for each figure, with its curve in blocks."""

import math
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from purestep.cli.plotting.charts import Charts, Heat, Line
from purestep.cli.plotting.reading import RunFiles, differences
from purestep.cli.plotting.scales import compact
from purestep.cli.plotting.sparklines import sparkline

_NARROW, _WIDE = 12, 48  # blocks of a curve
_LONGEST = 28  # characters of a name on a terminal
_SMALL = {"first": 72, "highest": 50}  # a terminal with fewer columns has no room for these values


def summary(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Return the figures of runs as plain values, for `--json`."""
    return {
        "runs": [
            {
                "name": run.name,
                "path": str(run.path),
                "rows": len(run.rows.rows),
                "config": {name: _plain(value) for name, value in run.config.items()},
                "figures": {
                    name: _figures(*run.rows.column(name)) for name in run.rows.names if name != "step"
                },
                "notes": list(run.notes),
            }
            for run in runs
        ],
        "differences": {name: list(map(_plain, values)) for name, values in differences(runs).items()},
    }


def show(tables: Any, charts: Charts) -> None:
    """Print the curves as blocks, then the figures by layer at the last step."""
    several = len(charts.labels) > 1
    if several:
        tables.say(*(f"{_letter(number)}  {label}" for number, label in enumerate(charts.labels)), "")
    lines = [
        (line, chart.limits)
        for chart in charts.curves
        for figure in dict.fromkeys(line.figure for line in chart.lines)
        for line in chart.lines
        if line.figure == figure
    ]
    if lines:
        heads = ["figure", *(["run"] if several else []), "curve", "first", "last", "lowest", "highest"]
        rows = [_row(line, several) for line, _ in lines]
        curve = heads.index("curve")
        if sys.stdout.isatty():
            columns = shutil.get_terminal_size().columns
            kept = [place for place, head in enumerate(heads) if columns >= _SMALL.get(head, 0)]
            heads, *rows = ([row[place] for place in kept] for row in [heads, *rows])
        width = _room([heads, *rows], curve)
        for row, (line, limits) in zip(rows, lines, strict=True):
            row[curve] = blocks_of(line.values, limits, width)
        sides = ["left" if place <= curve else "right" for place in range(len(heads))]
        tables.table("curves by step", list(zip(heads, sides, strict=True)), rows)
    if charts.heats:
        heads = ["figure", "layers, the first to the last", "lowest", "highest"]
        tables.table(
            "figures by layer at the last step",
            [(head, "left") for head in heads],
            [_layers(heat) for heat in charts.heats],
        )
    tables.say(*charts.notes)


def blocks_of(values: Sequence[float], limits: tuple[float, float] | None, width: int) -> str:
    """Return a curve as blocks that standard output can encode; a spike does not make the rest flat."""
    low, high = limits or (-math.inf, math.inf)
    return _blocks([min(max(value, low), high) if math.isfinite(value) else value for value in values], width)


def _figures(steps: Sequence[int], values: Sequence[float]) -> dict[str, Any]:
    finite = [place for place, value in enumerate(values) if math.isfinite(value)]
    low = min(finite, key=values.__getitem__, default=None)
    high = max(finite, key=values.__getitem__, default=None)
    return {
        "count": len(values),
        "not_finite": len(values) - len(finite),
        "first": values[0] if values else None,
        "last": values[-1] if values else None,
        "lowest": None if low is None else values[low],
        "lowest_step": None if low is None else steps[low],
        "highest": None if high is None else values[high],
        "highest_step": None if high is None else steps[high],
    }


def _row(line: Line, several: bool) -> list[str]:
    found = _figures(line.steps, line.values)
    numbers = [compact(found[name], 4) for name in ("first", "last")]
    for name in ("lowest", "highest"):
        numbers.append("none" if found[name] is None else compact(found[name], 4))
    return [_name(line.figure), *([_letter(line.run)] if several else []), "", *numbers]


def _layers(heat: Heat) -> list[str]:
    last = [next((value for value in reversed(row) if math.isfinite(value)), math.nan) for row in heat.values]
    finite = [place for place, value in enumerate(last) if math.isfinite(value)]
    ends = ["none", "none"]
    if finite:
        places = min(finite, key=last.__getitem__), max(finite, key=last.__getitem__)
        ends = [f"{compact(last[place], 4)} {_name(heat.layers[place])}" for place in places]
    return [_name(heat.title), _blocks(last, min(len(last), _WIDE)), *ends]


def _blocks(values: Sequence[float], width: int) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        "▁█".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return sparkline(values, width, ascii_only=True)
    return sparkline(values, width)


def _room(rows: Sequence[Sequence[str]], curve: int) -> int:
    """Return how many blocks fit beside the other columns of a terminal."""
    if not sys.stdout.isatty():
        return _WIDE
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = shutil.get_terminal_size().columns - sum(widths) + widths[curve] - 3 * len(widths) - 1
    return max(_NARROW, min(_WIDE, room))


def _name(name: str) -> str:
    return name if len(name) <= _LONGEST or not sys.stdout.isatty() else f"{name[: _LONGEST - 3]}..."


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def _plain(value: Any) -> Any:
    """Return a setting as JSON can hold it; TOML also has dates."""
    if isinstance(value, list):
        return list(map(_plain, value))
    if isinstance(value, dict):
        return {name: _plain(child) for name, child in value.items()}
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
