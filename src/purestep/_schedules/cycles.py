"""Schedules with one cycle or several."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from purestep._core import checks
from purestep._core.types import Schedule
from purestep._schedules.decay import plain, through
from purestep._schedules.standard import join_schedules, warmup_cosine_decay


def linear_onecycle(
    transition_steps: int,
    peak_value: float,
    pct_start: float = 0.3,
    pct_final: float = 0.85,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Rise linearly to the peak, fall back to the first value, then fall further to the last value.

    Differences from optax:

    1. With a `transition_steps` of 0 the schedule is constant at the last value. optax refuses 0.

    Differences from torch:

    1. In OneCycleLR the peak and the end are one count earlier.

    Args:
        transition_steps: the total duration, at least 0; the last value is at this count.
        peak_value: the value at count `int(pct_start * transition_steps)`.
        pct_start: the position of the peak, a fraction of the duration, in [0, 1].
        pct_final: the position where the first value is reached again, in [pct_start, 1].
        div_factor: the first value is `peak_value / div_factor`; greater than 0.
        final_div_factor: the last value is the first divided by this; greater than 0.

    Reference: Smith and Topin, Super-convergence, arXiv:1708.07120.

    >>> rate = linear_onecycle(100, 1.0)
    >>> [round(rate(n).item(), 6) for n in (0, 30, 85, 100)]
    [0.04, 1.0, 0.04, 4e-06]
    """
    caller = "schedules.linear_onecycle"
    cycle = _cycle(caller, transition_steps, peak_value, pct_start, div_factor, final_div_factor)
    pct_final = plain(caller, "pct_final", pct_final, least=pct_start, most=1)
    again = int(pct_final * cycle.steps)
    return through(
        [(0, cycle.first), (cycle.turn, cycle.peak), (again, cycle.first), (cycle.steps, cycle.last)]
    )


def cosine_onecycle(
    transition_steps: int,
    peak_value: float,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Rise to the peak, then fall to the last value, each along half a cosine.

    The arguments are those of `linear_onecycle`.

    Differences from torch:

    1. In OneCycleLR the peak and the end are one count earlier.

    Reference: Smith and Topin, Super-convergence, arXiv:1708.07120.

    >>> rate = cosine_onecycle(100, 1.0)
    >>> [round(rate(n).item(), 6) for n in (0, 30, 100)]
    [0.04, 1.0, 4e-06]
    """
    caller = "schedules.cosine_onecycle"
    cycle = _cycle(caller, transition_steps, peak_value, pct_start, div_factor, final_div_factor)
    points = [(0, cycle.first), (cycle.turn, cycle.peak), (cycle.steps, cycle.last)]
    return through(points, cosine=True)


def sgdr(cosine_kwargs: Iterable[Mapping[str, Any]]) -> Schedule:
    """Run cycles of `warmup_cosine_decay` one after another: cosine decay with warm restarts.

    Args:
        cosine_kwargs: the keyword arguments of each cycle, at least one; `decay_steps` is its duration.

    Reference: Loshchilov and Hutter, SGDR, arXiv:1608.03983.

    >>> cycle = {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 2, "decay_steps": 10}
    >>> rate = sgdr([cycle, cycle | {"peak_value": 0.5}])
    >>> [round(rate(n).item(), 6) for n in (2, 6, 10, 12)]
    [1.0, 0.5, 0.0, 0.5]
    """
    cycles = [
        (
            warmup_cosine_decay(**kwargs),
            checks.integer("schedules.sgdr", "decay_steps", kwargs["decay_steps"]),
        )
        for kwargs in cosine_kwargs
    ]
    if not cycles:
        raise checks.error("schedules.sgdr", "cosine_kwargs must hold at least one cycle")
    ends = [sum(steps for _, steps in cycles[:index]) for index in range(1, len(cycles))]
    return join_schedules([schedule for schedule, _ in cycles], ends)


class _Cycle(NamedTuple):
    """The counts and the values of one cycle."""

    steps: int
    turn: int
    first: float
    peak: float
    last: float


def _cycle(
    caller: str,
    transition_steps: int,
    peak_value: float,
    pct_start: float,
    div_factor: float,
    final_div_factor: float,
) -> _Cycle:
    """Check the arguments that the one-cycle schedules share, and return the cycle."""
    transition_steps = checks.integer(caller, "transition_steps", transition_steps, least=0)
    peak_value = checks.number(caller, "peak_value", peak_value)
    pct_start = plain(caller, "pct_start", pct_start, least=0, most=1)
    div_factor = checks.number(caller, "div_factor", div_factor, above=0)
    final_div_factor = checks.number(caller, "final_div_factor", final_div_factor, above=0)
    first = peak_value / div_factor
    turn = int(pct_start * transition_steps)
    return _Cycle(transition_steps, turn, first, peak_value, first / final_div_factor)
