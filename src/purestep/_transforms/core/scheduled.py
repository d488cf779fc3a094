"""Ask a schedule for its value, and say what is wrong when it has none."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import checks, scalars


def value_at(caller: str, name: str, schedule: Callable[[mx.array], Any], count: mx.array) -> mx.array:
    """Return the value of a schedule at a count, 0-d float32.

    Args:
        caller: the public name that errors give.
        name: the argument that is a schedule.
        schedule: `count -> value`, to a number or a 0-d array.
        count: 0-d int32.

    Raises:
        TypeError, ValueError: for a schedule that reads its count in Python while it is traced, or whose
            value is not a number or a 0-d array.

    >>> value_at("sgd", "learning_rate", lambda count: 0.1 / (count + 1), mx.array(1))
    array(0.05, dtype=float32)
    """
    value = called(caller, name, schedule, count)
    return scalars.float32(checks.number(caller, f"the value of the schedule {name}", value))


def called(caller: str, name: str, fn: Callable[..., Any], count: mx.array, **extra: Any) -> Any:
    """Return what a function of a count returns; of one that reads the count, say what to write instead."""
    try:
        return fn(count, **extra)
    except (ValueError, RuntimeError) as error:
        if "[eval]" not in str(error):
            raise
        raise ValueError(
            f"{caller}: {name} is a function of the count that reads it in Python (`if`, `int(count)`, "
            "`count.item()`), which a traced step cannot do; write mx.where(count < 10, 0.1, 0.01), or use "
            "schedules.piecewise_constant or schedules.join_schedules"
        ) from error
