"""Statistics of turns that were measured side by side."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple


class Spread(NamedTuple):
    """The median and the quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarize at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    @classmethod
    def of_ratios(cls, values: Sequence[float], base: Sequence[float]) -> "Spread":
        """Summarize the ratios of values that were measured side by side."""
        return cls.of([a / b for a, b in zip(values, base, strict=True)])

    def show(self, digits: int = 2, scale: float = 1.0) -> str:
        """Write `median (low-high)`."""
        median, low, high = (f"{scale * x:.{digits}f}" for x in self)
        return f"{median} ({low}-{high})"


def fastest(values: Sequence[float]) -> float:
    """Return the mean of the smallest tenth: what is left when other work on the machine pauses."""
    count = max(1, len(values) // 10)
    return statistics.fmean(sorted(values)[:count])


def milliseconds(values: Sequence[float]) -> str:
    """Write median and quartiles of seconds in milliseconds; a dash if there is no value yet."""
    if not values:
        return "-"
    spread = Spread.of(values)
    digits = 3 if spread.median < 0.01 else 2 if spread.median < 0.1 else 1
    return spread.show(digits, 1e3)


def ratio(values: Sequence[float], base: Sequence[float], digits: int = 2) -> str:
    """Write the ratio of values measured side by side; a dash if either has none."""
    return Spread.of_ratios(values, base).show(digits) if values and base else "-"


def timed(contestants: dict[str, Any]) -> dict[str, list[float]]:
    """Return the seconds of the contestants that took at least one turn."""
    return {name: each["seconds"] for name, each in contestants.items() if each.get("seconds")}
