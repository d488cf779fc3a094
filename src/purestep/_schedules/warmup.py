"""Schedules that start with a linear warm-up."""

import math
from typing import Literal

import mlx.core as mx

from purestep._core import checks, scalars
from purestep._core.types import Schedule
from purestep._schedules.decay import exponential_decay
from purestep._schedules.standard import join_schedules, linear, progress, warmup_cosine_decay


def warmup_constant(init_value: float, peak_value: float, warmup_steps: int) -> Schedule:
    """Warm up linearly, then stay constant.

    Differences from optax:

    1. With a `warmup_steps` of 0 the schedule is constant at `peak_value`; in optax at `init_value`.

    Args:
        init_value: the value at count 0; not used if `warmup_steps` is 0.
        peak_value: the value from count `warmup_steps` on.
        warmup_steps: the duration of the warm-up, at least 0.

    >>> warmup_constant(0.0, 1.0, 10)(mx.array(5))
    array(0.5, dtype=float32)
    """
    caller = "schedules.warmup_constant"
    return _warmup(caller, init_value, peak_value, warmup_steps)


def warmup_exponential_decay(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    transition_steps: int,
    decay_rate: float,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: float | None = None,
) -> Schedule:
    """Warm up linearly, then decay exponentially from the peak.

    The arguments are those of `warmup_constant` and `exponential_decay`. The counts of the decay start at the
    end of the warm-up.

    >>> rate = warmup_exponential_decay(0.0, 1.0, 10, 5, 0.5)
    >>> [round(rate(mx.array(n)).item(), 6) for n in (5, 10, 15)]
    [0.5, 1.0, 0.5]
    """
    rise = _warmup("schedules.warmup_exponential_decay", init_value, peak_value, warmup_steps)
    fall = exponential_decay(peak_value, transition_steps, decay_rate, transition_begin, staircase, end_value)
    return join_schedules([rise, fall], [warmup_steps])


def warmup_cosine(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    decay_steps: int,
    min_ratio: float = 0.0,
    exponent: float = 1.0,
) -> Schedule:
    """Run `warmup_cosine_decay` with an end value of `min_ratio * peak_value`.

    `min_ratio` is in [0, 1]. The other arguments are those of `warmup_cosine_decay`.

    >>> warmup_cosine(0.0, 1.0, 10, 110, min_ratio=0.1)(mx.array(110))
    array(0.1, dtype=float32)
    """
    peak_value = checks.number("schedules.warmup_cosine", "peak_value", peak_value)
    min_ratio = checks.number("schedules.warmup_cosine", "min_ratio", min_ratio, least=0, most=1)
    end_value = min_ratio * peak_value
    return warmup_cosine_decay(init_value, peak_value, warmup_steps, decay_steps, end_value, exponent)


def warmup_linear_decay(
    init_value: float, peak_value: float, warmup_steps: int, decay_steps: int, min_ratio: float = 0.0
) -> Schedule:
    """Warm up linearly, decay linearly, then stay constant.

    Args:
        init_value: as in `warmup_constant`.
        peak_value: the value at count `warmup_steps`, where the decay starts.
        warmup_steps: as in `warmup_constant`.
        decay_steps: the count at which the decay ends, at least `warmup_steps`: the total duration,
            warm-up included. If both are equal, the value jumps to the end value there.
        min_ratio: the end value as a fraction of `peak_value`, in [0, 1].

    >>> rate = warmup_linear_decay(0.0, 1.0, 10, 110, min_ratio=0.1)
    >>> [round(rate(mx.array(n)).item(), 6) for n in (5, 10, 60, 110)]
    [0.5, 1.0, 0.55, 0.1]
    """
    caller = "schedules.warmup_linear_decay"
    decay_steps = checks.integer(caller, "decay_steps", decay_steps, least=0)
    rise = _warmup(caller, init_value, peak_value, warmup_steps)
    if decay_steps < warmup_steps:
        raise checks.error(
            caller, f"decay_steps includes the warmup and must be at least {warmup_steps}, got {decay_steps}"
        )
    min_ratio = checks.number(caller, "min_ratio", min_ratio, least=0, most=1)
    fall = linear(peak_value, min_ratio * peak_value, decay_steps - warmup_steps)
    return join_schedules([rise, fall], [warmup_steps])


def warmup_stable_decay(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    stable_steps: int,
    decay_steps: int,
    min_ratio: float = 0.0,
    *,
    decay: Literal["linear", "cosine", "sqrt"] = "linear",
) -> Schedule:
    """Warm up, stay at the peak, then decay at the end: WSD.

    The length of a run need not be fixed at its start: continue a checkpoint of the stable phase, either
    with more stable steps or with the decay. During the decay, while `x` goes from 0 to 1, the value is
    `end_value + (peak_value - end_value) * f(x)`, where `f(x)` is `1 - x` (linear),
    `(1 + cos(pi * x)) / 2` (cosine) or `1 - sqrt(x)` (sqrt).

    Args:
        init_value: as in `warmup_constant`.
        peak_value: the value from count `warmup_steps` to count `warmup_steps + stable_steps`.
        warmup_steps: as in `warmup_constant`.
        stable_steps: the duration at the peak, at least 0.
        decay_steps: the duration of the decay alone; with 0 the value jumps to the end value.
        min_ratio: the end value as a fraction of `peak_value`, in [0, 1].
        decay: the shape of the decay.

    Reference: Hu et al., MiniCPM, arXiv:2404.06395; sqrt: Hägele et al., arXiv:2405.18392.

    >>> rate = warmup_stable_decay(0.0, 1.0, 10, 80, 10)
    >>> [rate(mx.array(n)).item() for n in (5, 10, 90, 95, 100)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    caller = "schedules.warmup_stable_decay"
    rise = _warmup(caller, init_value, peak_value, warmup_steps)
    peak_value = checks.number(caller, "peak_value", peak_value)
    stable_steps = checks.integer(caller, "stable_steps", stable_steps, least=0)
    decay_steps = checks.integer(caller, "decay_steps", decay_steps, least=0)
    min_ratio = checks.number(caller, "min_ratio", min_ratio, least=0, most=1)
    shapes = {
        "linear": lambda x: 1 - x,
        "cosine": lambda x: 0.5 * (1 + mx.cos(math.pi * x)),
        "sqrt": lambda x: 1 - mx.sqrt(x),
    }
    if decay not in shapes:
        raise checks.error(caller, f"decay must be one of {', '.join(shapes)}, got {decay!r}")
    end_value = min_ratio * peak_value

    def fall(count: mx.array) -> mx.array:
        return end_value + (peak_value - end_value) * shapes[decay](
            progress(count, stable_steps, decay_steps)
        )

    return join_schedules([rise, fall], [warmup_steps])


def inverse_sqrt(
    init_value: float, peak_value: float, warmup_steps: int, timescale: int | None = None
) -> Schedule:
    """Warm up linearly, then decay with the inverse square root of the count.

    After the warm-up the value is `peak_value * sqrt(timescale / (timescale + count - warmup_steps))`.
    With `timescale=None` and a warm-up, that is `peak_value * sqrt(warmup_steps / count)`.

    Args:
        init_value: as in `warmup_constant`.
        peak_value: the value at count `warmup_steps`, where the decay starts.
        warmup_steps: as in `warmup_constant`.
        timescale: at least 1. The value is half the peak at `3 * timescale` updates after it. `None` is
            `warmup_steps`, or 1 if that is 0.

    Reference: Vaswani et al., arXiv:1706.03762; Raffel et al., arXiv:1910.10683.

    >>> rate = inverse_sqrt(0.0, 1.0, 100)
    >>> [rate(mx.array(n)).item() for n in (50, 100, 400, 10_000)]
    [0.5, 1.0, 0.5, 0.10000000149011612]
    """
    caller = "schedules.inverse_sqrt"
    rise = _warmup(caller, init_value, peak_value, warmup_steps)
    peak_value = checks.number(caller, "peak_value", peak_value)
    scale = checks.integer(
        caller, "timescale", max(warmup_steps, 1) if timescale is None else timescale, least=1
    )

    def fall(count: mx.array) -> mx.array:
        # Before the peak, `join_schedules` passes negative counts and drops the results.
        return peak_value * mx.rsqrt(1 + mx.maximum(scalars.float32(count), 0) / scale)

    return join_schedules([rise, fall], [warmup_steps])


def _warmup(caller: str, init_value: float, peak_value: float, warmup_steps: int) -> Schedule:
    init_value = checks.number(caller, "init_value", init_value)
    peak_value = checks.number(caller, "peak_value", peak_value)
    warmup_steps = checks.integer(caller, "warmup_steps", warmup_steps, least=0)
    return linear(init_value, peak_value, warmup_steps)
