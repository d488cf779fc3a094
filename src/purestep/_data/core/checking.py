"""Checks that sources share: of the step that is asked for, and of sources made of sources."""

from typing import Any

import mlx.core as mx

from purestep._core import checks


def step_of(caller: str, step: Any) -> int:
    """Return a step as a Python integer; refuse a negative one, which would be a batch of no epoch.

    >>> step_of("Batches", 3)
    3
    """
    return step if type(step) is int and step >= 0 else checks.integer(f"{caller}.at", "step", step, least=0)


def source_of(caller: str, name: str, source: Any) -> Any:
    """Return an object with `at(step)`; refuse every other value, and a source without batches."""
    if isinstance(source, mx.array) or not callable(getattr(source, "at", None)):  # an array has `at`
        raise TypeError(f"{caller}: {name} must have at(step), got {type(source).__name__}")
    if getattr(source, "on_policy", False):
        raise TypeError(f"{caller}: {name} must have at(step), got an on-policy source, with at(state)")
    try:
        length = len(source)
    except TypeError:
        return source
    if not length:
        raise checks.error(caller, f"{name} must have at least one batch, got none")
    return source
