"""The rows of a run: figures by step, small enough to keep and to store with every checkpoint."""

import base64
import math
import sys
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

from purestep._core import checks

_MOST = 4096  # rows of a table; a longer run keeps every second row, then every fourth, ...


class _Table:
    """Rows of numbers by step, in columns of 8 bytes a number; an absent number is NaN and marked."""

    def __init__(self, most: int | None):
        self.steps = array("q")
        self.columns: dict[str, array[float]] = {}
        self.present: dict[str, bytearray] = {}
        self.most, self.stride, self.given = most, 1, 0

    def add(self, step: int, row: Mapping[str, float]) -> None:
        """Append a row, unless the stride leaves it out."""
        self.given += 1
        if (self.given - 1) % self.stride:
            return
        count = len(self.steps)
        self.steps.append(step)
        for name in [name for name in row if name not in self.columns]:
            self.columns[name] = array("d", [math.nan]) * count
            self.present[name] = bytearray(count)
        for name, column in self.columns.items():
            column.append(row.get(name, math.nan))
            self.present[name].append(name in row)
        if self.most is not None and len(self.steps) > self.most:
            self._halve()

    def _halve(self) -> None:
        self.stride *= 2
        self.steps = self.steps[::2]
        self.columns = {name: column[::2] for name, column in self.columns.items()}
        self.present = {name: marks[::2] for name, marks in self.present.items()}

    def row(self, index: int) -> dict[str, float]:
        numbers = {name: column[index] for name, column in self.columns.items() if self.present[name][index]}
        return {"step": self.steps[index], **numbers}

    def plain(self) -> dict[str, Any]:
        return {
            "steps": _text(self.steps),
            "stride": self.stride,
            "given": self.given,
            "columns": {
                name: [_text(column), None if all(marks) else _text(array("B", marks))]
                for (name, column), marks in zip(self.columns.items(), self.present.values(), strict=True)
            },
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], most: int | None) -> "_Table":
        table = cls(most)
        table.steps = _numbers("q", plain["steps"])
        table.stride, table.given = int(plain["stride"]), int(plain["given"])
        for name, (column, marks) in plain["columns"].items():
            table.columns[name] = _numbers("d", column)
            count = len(table.steps)
            table.present[name] = bytearray(b"\1" * count if marks is None else _numbers("B", marks))
            if not len(table.columns[name]) == len(table.present[name]) == count:
                raise ValueError("columns of different lengths")
        return table


def _text(numbers: "array[Any]") -> str:
    """Return numbers as base64 of their little-endian bytes: exact, and a third of their size as JSON."""
    return base64.b64encode(_little(numbers).tobytes()).decode()


def _numbers(code: str, text: str) -> "array[Any]":
    numbers = array(code)
    numbers.frombytes(base64.b64decode(text, validate=True))
    return _little(numbers)


def _little(numbers: "array[Any]") -> "array[Any]":
    if sys.byteorder == "big":
        numbers = array(numbers.typecode, numbers)
        numbers.byteswap()
    return numbers


class History:
    """The figures of a run: a row for each logged step, and a row for each evaluation.

    It takes 9 bytes a number. Of the logged steps it keeps at most 4,096 rows: when there are more, every
    second row is dropped, so a long run is stored more coarsely. Rows of evaluations are all kept.

    >>> history = History()
    >>> history.log(10, {"loss": 2.5})
    >>> history.log(20, {"loss": 1.5})
    >>> history.evaluated(20, {"eval_loss": 1.75})
    >>> history.column("loss"), history.last("eval_loss")
    (([10, 20], [2.5, 1.5]), 1.75)
    >>> list(history)
    [{'step': 10, 'loss': 2.5}, {'step': 20, 'loss': 1.5}, {'step': 20, 'eval_loss': 1.75}]
    """

    def __init__(self) -> None:
        self._logged, self._evaluated = _Table(_MOST), _Table(None)

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Add the row of a logged step."""
        self._logged.add(step, row)

    def evaluated(self, step: int, row: Mapping[str, float]) -> None:
        """Add the row of an evaluation."""
        self._evaluated.add(step, row)

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Return the steps and the values of one figure, without rows that lack it."""
        for table in (self._logged, self._evaluated):
            if name in table.columns:
                marks = table.present[name]
                steps = [step for step, there in zip(table.steps, marks, strict=True) if there]
                values = [value for value, there in zip(table.columns[name], marks, strict=True) if there]
                return steps, values
        return [], []

    def last(self, name: str) -> float | None:
        """Return the last value of a figure, or `None`."""
        values = self.column(name)[1]
        return values[-1] if values else None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all figures, those of logged steps first."""
        return (*self._logged.columns, *self._evaluated.columns)

    @property
    def logged_names(self) -> tuple[str, ...]:
        """The names of the figures of logged steps."""
        return tuple(self._logged.columns)

    @property
    def evaluated_names(self) -> tuple[str, ...]:
        """The names of the figures of evaluations."""
        return tuple(self._evaluated.columns)

    def __len__(self) -> int:
        return len(self._logged.steps) + len(self._evaluated.steps)

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Yield all rows by step; the row of a logged step comes before that of an evaluation."""
        rows = [
            (table.steps[index], order, index, table)
            for order, table in enumerate((self._logged, self._evaluated))
            for index in range(len(table.steps))
        ]
        for _, _, index, table in sorted(rows, key=lambda row: row[:3]):
            yield table.row(index)

    def to_plain(self) -> dict[str, Any]:
        """Return the history as JSON values. Numbers are stored exactly, NaN and infinities too."""
        return {"logged": self._logged.plain(), "evaluated": self._evaluated.plain()}

    @classmethod
    def from_plain(cls, plain: Any) -> "History":
        """Return the history that `to_plain` returned.

        Raises:
            ValueError: if the value is not such a history.
        """
        history = cls()
        try:
            history._logged = _Table.from_plain(plain["logged"], _MOST)
            history._evaluated = _Table.from_plain(plain["evaluated"], None)
        except (TypeError, KeyError, AttributeError, OverflowError, ValueError):
            message = "plain must be the result of History.to_plain"
            raise checks.error("History.from_plain", message) from None
        return history
