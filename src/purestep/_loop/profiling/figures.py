"""What the times of steps amount to: medians, spread, shares, and a table."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from purestep._loop.profiling.clock import OTHER, StepTimes

PARTS = (
    "data",
    "build",
    "dispatch",
    "queue",
    "wait",
    "loop body",
    "callbacks",
    "evaluation",
    "checkpoint",
)  # in the order of a step; parts of other names follow
_LIMITS = {
    "wait for the device": ("wait", "queue"),
    "build and dispatch": ("build", "dispatch"),
}
_FIRST = {"build": "build with trace", "queue": "queue or compilers"}
_MEANINGS = {
    "wait for the device": "The device is the limit: a faster loop would change little.",
    "build and dispatch": "Python is the limit.",
    "data": "The source of the batches is the limit.",
}


class PartTimes(NamedTuple):
    """The times of one part over the measured steps. A step without the part counts as 0.

    Attributes:
        share: of the wall-clock time of all steps, from 0 to 1.
        median: seconds.
        low: seconds; 10 % of the steps took less.
        high: seconds; 10 % of the steps took more.
        most: seconds in the slowest step.
        mean: seconds.
    """

    share: float
    median: float
    low: float
    high: float
    most: float
    mean: float


def quantile(values: Iterable[float], share: float) -> float:
    """Return a quantile, interpolated between the two nearest values.

    >>> quantile([4.0, 1.0, 2.0, 3.0], 0.5), quantile([1.0, 2.0, 3.0], 1.0)
    (2.5, 3.0)
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


def names_in(rows: Sequence[StepTimes]) -> list[str]:
    """Return the parts that occur, in the order of a step; `other` is the last one."""
    found = dict.fromkeys(name for row in rows for name in row.parts)
    own = [name for name in found if name not in PARTS and name != OTHER]
    return [*(name for name in PARTS if name in found), *own, *([OTHER] if OTHER in found else [])]


def times(values: Sequence[float], whole: float) -> PartTimes:
    """Return the figures of one part."""
    total = math.fsum(values)
    return PartTimes(
        total / whole if whole else 0.0,
        quantile(values, 0.5),
        quantile(values, 0.1),
        quantile(values, 0.9),
        max(values),
        total / len(values),
    )


def summary(rows: Sequence[StepTimes]) -> dict[str, PartTimes]:
    """Return the figures of each part, and last those of the whole `step`.

    >>> rows = [StepTimes(4, 0.3, {"wait": 0.2, "other": 0.1}), StepTimes(5, 0.1, {"other": 0.1})]
    >>> found = summary(rows)
    >>> list(found), round(found["wait"].share, 3), found["wait"].median
    (['wait', 'other', 'step'], 0.5, 0.1)
    """
    if not rows:
        return {}
    whole = math.fsum(row.seconds for row in rows)
    found = {name: times([row.parts.get(name, 0.0) for row in rows], whole) for name in names_in(rows)}
    return {**found, "step": times([row.seconds for row in rows], whole)}


def shorten(name: str, most: int = 24) -> str:
    """Return a name of at most `most` characters.

    >>> shorten("the first layer of the decoder", 12)
    'the first...'
    """
    return name if len(name) <= most else f"{name[: most - 3]}..."


def limit(found: Mapping[str, PartTimes]) -> str:
    """Return a sentence about the largest part, or parts that belong together.

    >>> limit({"wait": PartTimes(0.8, 0, 0, 0, 0, 0), "step": PartTimes(1.0, 0, 0, 0, 0, 0)})
    'Largest: wait for the device, 80 %. The device is the limit: a faster loop would change little.'
    """
    together = {part for parts in _LIMITS.values() for part in parts}
    shares = {name: part.share for name, part in found.items() if name not in together and name != "step"}
    for name, parts in _LIMITS.items():
        shares[name] = sum(found[part].share for part in parts if part in found)
    name = max(shares, key=lambda name: shares[name])
    return f"Largest: {shorten(name)}, {100 * shares[name]:.0f} %. {_MEANINGS.get(name, '')}".rstrip()


def table(first: StepTimes | None, rows: Sequence[StepTimes], wanted: int) -> str:
    """Return the table that a profile prints."""
    lines = []
    if rows:
        of = "" if len(rows) == wanted else f" of {wanted} asked for"
        lines.append(f"{len(rows)} steps{of}, from step {rows[0].step} to {rows[-1].step}; milliseconds")
        found = summary(rows)
        width = max(12, *(len(shorten(name)) for name in found))
        lines.append(
            f"{'part':{width}}{'share':>9}{'median':>11}{'10 %':>11}{'90 %':>11}{'most':>11}{'mean':>11}"
        )
        for name, part in found.items():
            cells = "".join(f"{1000 * value:11.3f}" for value in part[1:])
            lines.append(f"{shorten(name):{width}}{100 * part.share:7.1f} %{cells}")
        lines.append(limit(found))
        retraced = sum(bool(row.traces) for row in rows)
        if retraced:
            lines.append(f"The step was traced in {retraced} of these steps.")
    else:
        lines.append(f"no step was measured, {wanted} asked for")
    if first is not None:
        parts = ", ".join(
            f"{_FIRST.get(name, shorten(name))} {1000 * first.parts[name]:.1f}" for name in names_in([first])
        )
        lines.append(f"first step: {1000 * first.seconds:.1f} ms ({parts})")
    return "\n".join(lines)
