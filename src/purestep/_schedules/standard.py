"""Constant, linear and cosine schedules, and schedules in sequence.

A schedule is a pure, traceable function `schedule(count) -> value`. It takes the number of updates made so
far, an int or a 0-d array, and returns a 0-d float32 array. One compiled step works for every count.
"""

import math
from collections.abc import Sequence

import mlx.core as mx

from purestep._core import checks, scalars
from purestep._core.types import Schedule


def constant(value: float) -> Schedule:
    """Return `value` at every count.

    >>> constant(0.1)(mx.array(5))
    array(0.1, dtype=float32)
    """
    value = checks.number("schedules.constant", "value", value)
    return lambda count: mx.array(value, mx.float32)


def linear(init_value: float, end_value: float, transition_steps: int, transition_begin: int = 0) -> Schedule:
    """Change linearly from one value to another, then stay constant.

    Args:
        init_value: the value up to count `transition_begin`.
        end_value: the value from count `transition_begin + transition_steps` on.
        transition_steps: the duration of the change; with 0 the value jumps at `transition_begin`.
        transition_begin: the number of updates before the change starts.

    >>> linear(1.0, 0.0, 10)(mx.array(4))
    array(0.6, dtype=float32)
    """
    caller = "schedules.linear"
    init_value = checks.number(caller, "init_value", init_value)
    end_value = checks.number(caller, "end_value", end_value)
    steps, begin = checked_transition(caller, transition_steps, transition_begin)

    def schedule(count: mx.array) -> mx.array:
        return init_value + (end_value - init_value) * progress(count, begin, steps)

    return schedule


def cosine_decay(init_value: float, decay_steps: int, alpha: float = 0.0, exponent: float = 1.0) -> Schedule:
    """Decay along half a cosine from `init_value` to `alpha * init_value`, then stay constant.

    `init_value * ((1 - alpha) * (0.5 * (1 + cos(pi * count / decay_steps))) ** exponent + alpha)`

    Args:
        init_value: the value at count 0.
        decay_steps: the duration of the decay, at least 1.
        alpha: the end value as a fraction of `init_value`.
        exponent: a power of the cosine term, greater than 0; 1 is the plain cosine.

    Reference: Loshchilov and Hutter, SGDR, arXiv:1608.03983.

    >>> cosine_decay(1.0, 100)(mx.array(50))
    array(0.5, dtype=float32)
    """
    caller = "schedules.cosine_decay"
    init_value = checks.number(caller, "init_value", init_value)
    decay_steps = checks.integer(caller, "decay_steps", decay_steps, least=1)
    alpha = checks.number(caller, "alpha", alpha)
    exponent = checks.number(caller, "exponent", exponent, above=0)
    return _half_cosine(init_value, alpha * init_value, 0, decay_steps, exponent)


def warmup_cosine_decay(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    decay_steps: int,
    end_value: float = 0.0,
    exponent: float = 1.0,
) -> Schedule:
    """Warm up linearly, then decay along half a cosine, then stay constant.

    Differences from optax:

    1. An `end_value` with a larger absolute value than the peak is refused. In optax the value rises to it,
       or stays 0 if the peak is 0.

    Args:
        init_value: the value at count 0; not used if `warmup_steps` is 0.
        peak_value: the value at count `warmup_steps`, where the decay starts.
        warmup_steps: the duration of the warm-up, at least 0.
        decay_steps: the count at which the decay ends, greater than `warmup_steps`: the total duration,
            warm-up included.
        end_value: the value from count `decay_steps` on; its absolute value is at most that of the peak.
        exponent: as in `cosine_decay`.

    Reference: Loshchilov and Hutter, SGDR, arXiv:1608.03983; warm-up: Goyal et al., arXiv:1706.02677.

    >>> rate = warmup_cosine_decay(0.0, 1.0, warmup_steps=10, decay_steps=110)
    >>> [round(rate(mx.array(n)).item(), 3) for n in (0, 5, 10, 60, 110)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    caller = "schedules.warmup_cosine_decay"
    peak_value = checks.number(caller, "peak_value", peak_value)
    end_value = checks.number(caller, "end_value", end_value)
    warmup_steps = checks.integer(caller, "warmup_steps", warmup_steps, least=0)
    decay_steps = checks.integer(caller, "decay_steps", decay_steps, least=0)
    if decay_steps <= warmup_steps:
        rule = f"decay_steps includes the warmup and must be greater than {warmup_steps}"
        raise checks.error(caller, f"{rule}, got {decay_steps}")
    if checks.is_number(peak_value) and checks.is_number(end_value) and abs(end_value) > abs(peak_value):
        raise checks.error(
            caller, f"end_value must not be larger than peak_value, {peak_value}, got {end_value}"
        )
    init_value = checks.number(caller, "init_value", init_value)
    exponent = checks.number(caller, "exponent", exponent, above=0)
    fall = _half_cosine(peak_value, end_value, warmup_steps, decay_steps - warmup_steps, exponent)
    if warmup_steps == 0:
        return fall
    rise = linear(init_value, peak_value, warmup_steps)

    def schedule(count: mx.array) -> mx.array:
        return mx.where(scalars.elapsed(count, warmup_steps) < 0, rise(count), fall(count))

    return schedule


def join_schedules(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """Run schedules one after another; each counts from its own start.

    Args:
        schedules: at least one.
        boundaries: the counts at which each next schedule starts, increasing; one fewer than `schedules`.

    >>> rate = join_schedules([constant(1.0), constant(2.0)], [10])
    >>> [rate(mx.array(n)).item() for n in (9, 10)]
    [1.0, 2.0]
    """
    caller = "schedules.join_schedules"
    schedules = tuple(schedules)
    boundaries = [checks.integer(caller, "boundaries", boundary, least=0) for boundary in boundaries]
    if not schedules or len(boundaries) != len(schedules) - 1:
        raise checks.error(
            caller,
            f"boundaries must be one fewer than schedules, got {len(boundaries)} and {len(schedules)}",
        )
    if boundaries != sorted(set(boundaries)):
        raise checks.error(caller, f"boundaries must increase, got {tuple(boundaries)}")

    def schedule(count: mx.array) -> mx.array:
        value = schedules[0](count)
        for boundary, follower in zip(boundaries, schedules[1:], strict=True):
            since = scalars.elapsed(count, boundary)
            value = mx.where(since < 0, value, follower(since))
        return value

    return schedule


def _half_cosine(init_value: float, end_value: float, begin: int, steps: int, exponent: float) -> Schedule:
    def schedule(count: mx.array) -> mx.array:
        cosine = mx.cos(math.pi * progress(count, begin, steps))
        if exponent == 1:  # fewer operations, so the schedule is one kernel
            return (init_value + end_value) / 2 + (init_value - end_value) / 2 * cosine
        return end_value + (init_value - end_value) * mx.power(0.5 * (1 + cosine), exponent)

    return schedule


def progress(count: mx.array, begin: int, steps: int) -> mx.array:
    """Return the progress from 0 at count `begin` to 1 at count `begin + steps` and after, 0-d float32."""
    since = scalars.elapsed(count, begin)
    if not steps:
        return (since >= 0).astype(mx.float32)
    return mx.clip(since.astype(mx.float32) / steps, 0.0, 1.0)


def checked_transition(caller: str, transition_steps: int, transition_begin: int) -> tuple[int, int]:
    """Return the duration and the start of a transition; refuse negative ones."""
    steps = checks.integer(caller, "transition_steps", transition_steps, least=0)
    return steps, checks.integer(caller, "transition_begin", transition_begin, least=0)
