"""Smoothing, ticks, bands and ranges of a picture, as functions of plain data."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MOST_TICKS = 7


def smoothed(values: Sequence[float], reach: int) -> list[float]:
    """Return centred moving averages over each value and `reach` neighbours on either side.

    Near the ends the window shrinks equally on both sides, so the curve is not shifted and a straight line is
    unchanged. NaN and infinities are left out of the averages; where a value itself is not finite, the curve
    has a gap.

    >>> smoothed([0.0, 3.0, 0.0, 3.0], reach=1)
    [0.0, 1.0, 2.0, 3.0]
    >>> smoothed([1.0, math.inf, 3.0, 3.0], reach=1)
    [1.0, nan, 3.0, 3.0]
    """
    means = []
    for index, value in enumerate(values):
        near = min(reach, index, len(values) - 1 - index)
        window = [each for each in values[index - near : index + near + 1] if math.isfinite(each)]
        means.append(sum(window) / len(window) if math.isfinite(value) else math.nan)
    return means


def smoothing_reach(count: int) -> int:
    """Return the number of neighbours on either side to smooth over; 0 for fewer than 20 values.

    >>> [smoothing_reach(count) for count in (10, 20, 200, 10_000)]
    [0, 1, 5, 15]
    """
    return min(count // 40, 15) if count >= 40 else int(count >= 20)


def whole_ticks(last: int) -> list[int]:
    """Return at most `MOST_TICKS` integer ticks for an axis from 0 to the last step.

    >>> whole_ticks(1), whole_ticks(6), whole_ticks(600)
    ([0, 1], [0, 1, 2, 3, 4, 5, 6], [0, 100, 200, 300, 400, 500, 600])
    """
    size = 1
    while True:
        for factor in (1, 2, 5):
            if last // (factor * size) < MOST_TICKS:
                return list(range(0, last + 1, factor * size))
        size *= 10


def band(histories: Sequence[Sequence[Mapping[str, Any]]], figure: str) -> list[dict[str, Any]]:
    """Return rows of `step, mean, low, high` of a figure over several runs, for the steps that all runs have.

    >>> band([[{"step": 3, "loss": 1.0}], [{"step": 3, "loss": 2.0}]], "loss")
    [{'step': 3, 'mean': 1.5, 'low': 1.0, 'high': 2.0}]
    """
    runs = [{row["step"]: row[figure] for row in history if figure in row} for history in histories]
    rows = []
    for step in sorted(set.intersection(*map(set, runs))) if runs else []:
        values = [run[step] for run in runs]
        rows.append(
            {"step": step, "mean": sum(values) / len(values), "low": min(values), "high": max(values)}
        )
    return rows


def zoomed(curves: Iterable[Sequence[float]], levels: Iterable[float] = ()) -> tuple[float, float] | None:
    """Return a range that contains the second half of every curve and all levels; `None` without values.

    A loss starts so high that its end would be flat on an axis that shows all values.

    >>> zoomed([[9.0, 3.0, 2.0, 1.0]], [1.5])
    (0.9, 2.1)
    """
    seen = [value for curve in curves for value in curve[len(curve) // 2 :]]
    seen += levels
    if not seen:
        return None
    low, high = min(seen), max(seen)
    margin = (high - low) / 10 or 0.1
    return low - margin, high + margin


def without_spikes(values: Iterable[float]) -> tuple[float, float] | None:
    """Return a range that leaves out rare spikes; `None` if there are none.

    A spike is further from the middle 98 % of the values than these are apart. NaN and infinities do not
    count.

    >>> without_spikes([1.0, 2.0] * 50), without_spikes([1.0, 2.0] * 100 + [1e6])
    (None, (0.9, 3.0))
    """
    seen = sorted(filter(math.isfinite, values))
    if not seen:
        return None
    cut = len(seen) // 100
    low, high = seen[cut], seen[-1 - cut]
    if low - seen[0] <= high - low and seen[-1] - high <= high - low:
        return None
    spread = high - low
    return max(seen[0] - spread / 10, low - spread), min(seen[-1] + spread / 10, high + spread)
