"""A run as it goes on: a screen that is drawn again, or a line for each row. It needs rich."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from purestep._core.escaping import printable
from purestep.cli.plotting.charts import charts_of
from purestep.cli.plotting.reading import RunFiles
from purestep.cli.plotting.scales import compact
from purestep.cli.plotting.summary import blocks_of

_MOST_FIGURES = 8  # of a line
_NARROWEST, _WIDEST = 10, 60  # blocks of a curve
_LONGEST, _GAP = 30, 2  # columns of a name, and between two cells
_SMALL = 50  # columns; a smaller terminal has no room for the lowest value
_FRAME = 6  # lines of the screen beside the curves
_COUNTS = ("step", "epoch", "samples", "tokens", "seconds")


class Screen:
    """The live screen of a terminal.

    >>> import io
    >>> screen = Screen(Console(file=io.StringIO()))
    >>> screen.close()
    """

    def __init__(self, console: Console | None = None):
        self._console = console or Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
        self._live = Live(
            console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )

    def draw(self, run: RunFiles, total: int | None, age: float | None) -> None:
        """Draw the run in place of what was drawn before."""
        if not self._live.is_started:
            self._live.start()
        width, height = self._console.size
        self._live.update(status(run, total, age, width, height), refresh=True)

    def close(self) -> None:
        """Leave the last picture, and show the cursor again."""
        self._live.stop()


def status(run: RunFiles, total: int | None, age: float | None, width: int, height: int) -> Group:
    """Return what the screen shows."""
    steps = int(run.rows.rows[-1]["step"]) if run.rows.rows else 0
    parts: list[Any] = [Text(printable(run.path), style="bold", no_wrap=True, overflow="ellipsis")]
    said = f"step {steps}" + (f" of {total}" if total else "") + _ages(age)
    parts.append(Text(said if run.rows.rows else f"waiting for the first row{_ages(age)}"))
    if total and run.rows.rows:
        parts.append(ProgressBar(total=total, completed=min(steps, total), width=min(width, 80)))
    parts += [Text(), _curves(run, width, max(1, height - _FRAME))]
    return Group(*parts)


def line_of(row: Mapping[str, float]) -> str:
    """Return a row as one line.

    >>> line_of({"step": 10, "loss": 1.23456, "tokens": 4096.0, "norms/a": 1.0})
    'step 10  loss 1.235'
    """
    figures = [name for name in row if name not in _COUNTS and "/" not in name]
    shown = [f"{name} {compact(row[name], 4)}" for name in figures[:_MOST_FIGURES]]
    return "  ".join([f"step {int(row['step'])}", *shown])


def _curves(run: RunFiles, width: int, most: int) -> Table:
    lines = [(line, chart.limits) for chart in charts_of([run]).curves for line in chart.lines][:most]
    numbers = [["last", "lowest"], *([_last(line.values), _lowest(line.values)] for line, _ in lines)]
    if width < _SMALL:
        numbers = [row[:1] for row in numbers]
    # Names give way first: a number that is cut is worth nothing.
    names = max((cell_len(printable(line.figure[:_LONGEST])) for line, _ in lines), default=0)
    room = width - sum(max(map(len, column)) + _GAP for column in zip(*numbers, strict=True)) - _GAP
    names = max(len("figure"), min(names, _LONGEST, room - _NARROWEST))
    table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, _GAP, 0, 0))
    table.add_column(Text("figure"), no_wrap=True, overflow="ellipsis", max_width=names)
    table.add_column(Text("curve"), no_wrap=True)
    for head in numbers[0]:
        table.add_column(Text(head), justify="right", no_wrap=True)
    for (line, limits), row in zip(lines, numbers[1:], strict=True):
        curve = blocks_of(line.values, limits, max(_NARROWEST, min(_WIDEST, room - names)))
        table.add_row(*map(Text, (printable(line.figure[:_LONGEST]), curve, *row)))
    return table


def _last(values: Sequence[float]) -> str:
    return compact(values[-1], 4)


def _lowest(values: Sequence[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    return compact(min(finite), 4) if finite else "none"


def _ages(age: float | None) -> str:
    """Return how old the last row is, if it is old.

    >>> _ages(3.0), _ages(90.0), _ages(7500.0)
    ('', ', the last row is 90 s old', ', the last row is 2.1 h old')
    """
    if age is None or age < 30:
        return ""
    said = f"{age:.0f} s" if age < 600 else f"{age / 60:.0f} min" if age < 7200 else f"{age / 3600:.1f} h"
    return f", the last row is {said} old"


def recent(rows: Iterable[Mapping[str, float]], count: int) -> list[str]:
    """Return the last rows as lines."""
    return [line_of(row) for row in [*rows][-count:]]
