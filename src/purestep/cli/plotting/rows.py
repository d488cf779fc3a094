"""The rows of a run, from the lines of a file that anyone may have written."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

LONGEST = 1_000_000  # bytes of a line
MOST_NUMBERS = 4_000_000  # of a run: about 400 MB
_LAST = 2**53  # steps beyond are not exact as floating-point numbers
_MOST_NAMES = 4096  # figures of a run
_DEEPEST = 4


def row_of(line: bytes) -> dict[str, float] | None:
    """Return the figures of a line of JSON, or `None` if it is not a row.

    A row is an object with an integer `step`. Its other figures are numbers: texts, truth values and lists
    are left out, null is NaN, and the figures of an object within it are named `outer/inner`.

    >>> row_of(b'{"step": 2, "loss": null, "text": "a", "norms": {"w": 1}}')
    {'step': 2, 'loss': nan, 'norms/w': 1.0}
    >>> row_of(b'{"step": 2, "lo') is None
    True
    """
    if len(line) > LONGEST:
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not _is_step(row.get("step")):
        return None
    figures: dict[str, float] = {"step": row.pop("step")}
    _add(figures, row, "", 0)
    return figures


class Rows:
    """Rows by step, as they are appended to a file.

    A row of a step before that of the last row belongs to a run that was resumed there: the rows of later
    steps, which the run repeats, are dropped. Memory is bounded: beyond four million numbers every second row
    is dropped, then every fourth, and so on. The newest row stays, and so do rows with figures that the row
    before lacks, such as those of evaluations.

    Attributes:
        rows: the rows; those of one step are merged.
        names: the names of all figures, `step` among them.
        skipped: the number of lines that are not rows.
        dropped: whether there are more than 4096 names; those beyond are left out.
        stride: one row of so many is kept.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.names: dict[str, None] = {}
        self.skipped = 0
        self.dropped = False
        self.stride = 1
        self._given = 0
        self._numbers = 0

    def add(self, line: bytes) -> bool:
        """Add a line; return whether it is a row."""
        if not line.strip():
            return False
        row = row_of(line)
        if row is None:
            self.skipped += 1
            return False
        while self.rows and self.rows[-1]["step"] > row["step"]:
            self._numbers -= len(self.rows.pop())
        self._bound_names(row)
        last = self.rows[-1] if self.rows else None
        if last is not None and last["step"] == row["step"]:
            self._numbers -= len(last)
            last.update(row)
            self._numbers += len(last)
        else:
            if self._is_spare():
                self._numbers -= len(self.rows.pop())
            self.rows.append(row)
            self._given += 1
            self._numbers += len(row)
        if self._numbers > MOST_NUMBERS:
            self._halve()
        return True

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Return the steps and the values of a figure, without rows that lack it."""
        found = [row for row in self.rows if name in row]
        return [int(row["step"]) for row in found], [row[name] for row in found]

    def _bound_names(self, row: dict[str, float]) -> None:
        for name in [name for name in row if name not in self.names]:
            if len(self.names) < _MOST_NAMES:
                self.names[name] = None
            else:
                self.dropped = True
                del row[name]

    def _is_spare(self) -> bool:
        """Tell whether the last row was kept only as the newest."""
        if (self._given - 1) % self.stride == 0 or len(self.rows) < 2:
            return False
        return self.rows[-1].keys() <= self.rows[-2].keys()

    def _halve(self) -> None:
        self.stride *= 2
        kept: list[dict[str, float]] = []
        drop = False
        for row in self.rows:
            drop = not drop and bool(kept) and row.keys() <= kept[-1].keys()
            if not drop or row is self.rows[-1]:
                kept.append(row)
        if sum(map(len, kept)) > 0.75 * MOST_NUMBERS:  # every row has figures that the one before lacks
            kept = self.rows[::-2][::-1]
        self.rows = kept
        self._numbers = sum(map(len, kept))


def rows_of(lines: Iterable[bytes]) -> Rows:
    """Return the rows of all lines."""
    rows = Rows()
    for line in lines:
        rows.add(line)
    return rows


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LAST


def _add(figures: dict[str, float], row: Mapping[str, Any], prefix: str, depth: int) -> None:
    for name, value in row.items():
        if isinstance(value, dict):
            if depth < _DEEPEST:
                _add(figures, value, f"{prefix}{name}/", depth + 1)
        elif value is None:
            figures[prefix + name] = math.nan
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                figures[prefix + name] = float(value)
            except OverflowError:  # an integer of more than 308 digits
                figures[prefix + name] = math.inf
