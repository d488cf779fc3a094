"""Evaluation of schedules, with errors that name the argument."""

import copy
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import checks, scalars


def value_at(caller: str, name: str, schedule: Callable[[mx.array], Any], count: mx.array) -> mx.array:
    """Return the value of a schedule at a count, 0-d float32.

    Args:
        caller: the public name for errors.
        name: the argument that is a schedule.
        schedule: `count -> value`, which returns a number or a 0-d array.
        count: 0-d int32.

    Raises:
        TypeError: if the value is not a number or a 0-d array.
        ValueError: if the value is not finite or not 0-d, or if the schedule reads its count in Python
            while it is traced.

    >>> value_at("sgd", "learning_rate", lambda count: 0.1 / (count + 1), mx.array(1))
    array(0.05, dtype=float32)
    """
    value = called(caller, name, schedule, count)
    return scalars.float32(checks.number(caller, f"the value of the schedule {name}", value))


def called(caller: str, name: str, fn: Callable[..., Any], count: mx.array, **extra: Any) -> Any:
    """Return `fn(count, **extra)`; if it reads the count in Python, the error shows what to write instead.

    The function receives a copy of the count: `count -= 100` in a schedule does not change the state.
    """
    try:
        return fn(copy.copy(count), **extra)
    except (ValueError, RuntimeError) as error:
        if "[eval]" not in str(error):
            raise
        raise ValueError(
            f"{caller}: {name} is a function of the count that reads it in Python (`if`, `int(count)`, "
            "`count.item()`), which a traced step cannot do; write mx.where(count < 10, 0.1, 0.01), or use "
            "schedules.piecewise_constant or schedules.join_schedules"
        ) from error
