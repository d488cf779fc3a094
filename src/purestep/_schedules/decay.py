"""Polynomial, exponential and piecewise schedules."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import mlx.core as mx

from purestep._core import checks, scalars
from purestep._core.types import Schedule
from purestep._schedules.standard import checked_transition, constant, progress


def polynomial(
    init_value: float, end_value: float, power: float, transition_steps: int, transition_begin: int = 0
) -> Schedule:
    """Change from one value to another along a power function, then stay constant.

    `end_value + (init_value - end_value) * (1 - (count - transition_begin) / transition_steps) ** power`

    Differences from optax:

    1. With a `transition_steps` of 0 the value jumps at `transition_begin`. In optax it stays `init_value`.

    Args:
        init_value: as in `linear`.
        end_value: as in `linear`.
        power: greater than 0; 1 is linear, and larger powers change faster at first.
        transition_steps: as in `linear`.
        transition_begin: as in `linear`.

    >>> polynomial(1.0, 0.0, 2, 10)(mx.array(5))
    array(0.25, dtype=float32)
    """
    caller = "schedules.polynomial"
    init_value = checks.number(caller, "init_value", init_value)
    end_value = checks.number(caller, "end_value", end_value)
    power = checks.number(caller, "power", power, above=0)
    steps, begin = checked_transition(caller, transition_steps, transition_begin)

    def schedule(count: mx.array) -> mx.array:
        left = 1 - progress(count, begin, steps)
        return end_value + (init_value - end_value) * mx.power(left, power)

    return schedule


def exponential_decay(
    init_value: float,
    transition_steps: int,
    decay_rate: float,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: float | None = None,
) -> Schedule:
    """Multiply by `decay_rate` every `transition_steps` updates, smoothly or in steps.

    `init_value * decay_rate ** ((count - transition_begin) / transition_steps)`

    Differences from optax:

    1. A `decay_rate` of 0 is refused. In optax it makes the schedule constant.

    Args:
        init_value: the value up to count `transition_begin`.
        transition_steps: the number of updates that multiply the value by `decay_rate`; with 0 the value is
            constant, as in optax.
        decay_rate: greater than 0.
        transition_begin: the number of updates before the decay starts.
        staircase: round the exponent down, so that the value changes only every `transition_steps` updates.
        end_value: a lower bound of the value if `decay_rate` is below 1, else an upper bound; `None`: no
            bound.

    >>> exponential_decay(1.0, 10, 0.5)(mx.array(20))
    array(0.25, dtype=float32)
    """
    caller = "schedules.exponential_decay"
    init_value = checks.number(caller, "init_value", init_value)
    steps, begin = checked_transition(caller, transition_steps, transition_begin)
    decay_rate = plain(caller, "decay_rate", decay_rate, above=0)
    if end_value is not None:
        end_value = checks.number(caller, "end_value", end_value)
    if steps == 0:
        return constant(init_value)
    rate, bound = math.log(decay_rate), mx.maximum if decay_rate < 1 else mx.minimum

    def schedule(count: mx.array) -> mx.array:
        since = mx.maximum(scalars.elapsed(count, begin, steps), 0)
        whole = (since // steps).astype(mx.float32)
        factors = whole if staircase else since.astype(mx.float32) / steps
        value = init_value * mx.exp(rate * factors)
        return value if end_value is None else bound(value, end_value)

    return schedule


def piecewise_constant(
    init_value: float, boundaries_and_scales: Mapping[int, float] | None = None
) -> Schedule:
    """Multiply the value by a scale at each of the given counts; it is constant between them.

    Args:
        init_value: the value before the first boundary.
        boundaries_and_scales: `{count: scale}`, both at least 0. Each scale multiplies the value that
            precedes its count.

    >>> rate = piecewise_constant(1.0, {100: 0.5, 200: 0.1})
    >>> [round(rate(mx.array(n)).item(), 6) for n in (99, 100, 200)]
    [1.0, 0.5, 0.05]
    """
    points = _points("schedules.piecewise_constant", init_value, boundaries_and_scales)

    def schedule(count: mx.array) -> mx.array:
        value = scalars.float32(points[0][1])
        for boundary, reached in points[1:]:
            value = mx.where(scalars.elapsed(count, boundary) < 0, value, reached)
        return value

    return schedule


def piecewise_interpolate(
    interpolate_type: Literal["linear", "cosine"],
    init_value: float,
    boundaries_and_scales: Mapping[int, float] | None = None,
) -> Schedule:
    """Interpolate between the values of `piecewise_constant`, and reach each of them at its count.

    Args:
        interpolate_type: `linear`; or `cosine`, half a wave with slope 0 at both ends.
        init_value: the value at count 0.
        boundaries_and_scales: as in `piecewise_constant`.

    >>> rate = piecewise_interpolate("linear", 1.0, {4: 0.5, 8: 0.0})
    >>> [rate(mx.array(n)).item() for n in (0, 2, 4, 6, 8)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    caller = "schedules.piecewise_interpolate"
    if interpolate_type not in ("linear", "cosine"):
        raise checks.error(caller, f"interpolate_type must be 'linear' or 'cosine', got {interpolate_type!r}")
    return through(_points(caller, init_value, boundaries_and_scales), interpolate_type == "cosine")


def plain(caller: str, name: str, value: Any, **bounds: float) -> float:
    """Return a Python number within the bounds; refuse arrays too, since Python computes with the number."""
    if isinstance(value, mx.array):
        raise TypeError(f"{caller}: {name} must be a Python number, got an array")
    return checks.number(caller, name, value, **bounds)


def _points(
    caller: str, init_value: float, boundaries_and_scales: Mapping[int, float] | None
) -> list[tuple[int, float]]:
    """Return the points (count, value), from (0, `init_value`) on; each scale multiplies the last value."""
    init_value = checks.number(caller, "init_value", init_value)
    scales: dict[int, float] = {}
    for boundary, scale in (boundaries_and_scales or {}).items():
        boundary = checks.integer(caller, "boundaries_and_scales", boundary, least=0)
        scales[boundary] = checks.number(caller, "boundaries_and_scales", scale, least=0)
    points = [(0, init_value)]
    for boundary in sorted(scales):
        points.append((boundary, points[-1][1] * scales[boundary]))
    return points


def through(points: Sequence[tuple[int, float]], cosine: bool = False) -> Schedule:
    """Interpolate between points (count, value) in order of count; the last point at a count is used."""

    def schedule(count: mx.array) -> mx.array:
        value = scalars.float32(points[0][1])
        for (begin, start), (end, stop) in pairwise(points):
            done = progress(count, begin, end - begin)
            if cosine:
                done = 0.5 - 0.5 * mx.cos(math.pi * done)
            # This is exact at both ends: `start + (stop - start)` would lose a small `stop`.
            value = mx.where(scalars.elapsed(count, begin) < 0, value, start * (1 - done) + stop * done)
        return value

    return schedule
