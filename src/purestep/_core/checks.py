"""Checks of arguments. Errors name the caller, the argument, the rule and the value."""

import math
import numbers
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import mlx.core as mx

_PACKAGE = __name__.partition(".")[0]


def error(caller: str, message: str) -> ValueError:
    """Return the error to raise; `caller` is the public name that the user called."""
    return ValueError(f"{caller}: {message}")


def number(
    caller: str,
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> Any:
    """Return a finite number within the bounds as a Python number; refuse every other value.

    Compute with the returned value: a numpy number times an MLX array gives a numpy array. A 0-d `mx.array`
    is returned unchecked, because reading it would wait for the device.

    >>> number("sgd", "learning_rate", 0.1, least=0)
    0.1
    """
    if isinstance(value, mx.array):
        if value.ndim != 0:
            raise error(caller, f"{name} must be a number or a 0-d array, got shape {value.shape}")
        return value
    value = python_number(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{caller}: {name} must be a number, got {value!r}")
    within = (
        (above is None or value > above)
        and (least is None or value >= least)
        and (below is None or value < below)
        and (most is None or value <= most)
    )
    if within and math.isfinite(value):
        return value
    rules = (
        (not math.isfinite(value), "must be finite"),
        (above is not None and not value > above, f"must be greater than {above}"),
        (least is not None and not value >= least, f"must be at least {least}"),
        (below is not None and not value < below, f"must be less than {below}"),
        (most is not None and not value <= most, f"must be at most {most}"),
    )
    for broken, rule in rules:
        if broken:
            raise error(caller, f"{name} {rule}, got {value}")
    return value


def integer(caller: str, name: str, value: Any, *, least: int | None = None) -> int:
    """Return an integer of at least `least` as a Python integer; refuse every other value.

    >>> integer("train_step", "microbatches", 4, least=1)
    4
    """
    value = python_number(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{caller}: {name} must be an integer, got {shown(value)}")
    if least is not None and value < least:
        raise error(caller, f"{name} must be at least {least}, got {shown(value)}")
    return value


def shown(value: Any) -> str:
    """Return a value as text for an error message. Python cannot print integers of more than 4300 digits.

    >>> shown("a"), shown(10**5000)
    ("'a'", 'an integer of 16610 bits')
    """
    try:
        return repr(value)
    except ValueError:
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__


def is_number(value: Any) -> bool:
    """Tell whether `number` accepts the value as a Python number. An `mx.array` is not one."""
    return type(python_number(value)) in (int, float)


def python_number(value: Any) -> Any:
    """Convert a number of another library, or a 0-d numpy array, to Python; return other values unchanged."""
    if type(value) in (bool, int, float):
        return value
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()  # a scalar or a 0-d array; a boolean stays a boolean and is refused
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def equal_on_ranks(caller: str, options: Sequence[Mapping[str, Any]], of: str = "") -> None:
    """Refuse options that differ between ranks.

    Args:
        caller: names the public function in the error.
        options: those of each rank, with the same names.
        of: what has them, after the name: `" of Checkpointer"`.
    """
    for rank, other in enumerate(options):
        for name, value in options[0].items():
            if other[name] != value:
                rule = f"{name}{of} must be equal on all ranks"
                raise error(caller, f"{rule}, got {value} on rank 0 and {other[name]} on rank {rank}")


def function(caller: str, name: str, value: Any) -> None:
    """Refuse a value that cannot be called."""
    if not isinstance(value, Callable):
        raise TypeError(f"{caller}: {name} must be callable, got {value!r}")


def one_of(caller: str, name: str, value: Any, allowed: Collection[str]) -> None:
    """Refuse a value that is not among the allowed names."""
    if not isinstance(value, str) or value not in allowed:
        raise error(caller, f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def users_level() -> int:
    """Return the `stacklevel` that makes a warning point at the first line outside the package."""
    level = 1
    frame = sys._getframe(1)
    passed = (_PACKAGE, "contextlib")  # also decorators of the package
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in passed:
        frame, level = frame.f_back, level + 1
    return level
