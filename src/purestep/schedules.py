"""Schedules: functions from a step count to a value, array to array."""

from purestep._schedules.cycles import cosine_onecycle, linear_onecycle, sgdr
from purestep._schedules.decay import exponential_decay, piecewise_constant, piecewise_interpolate, polynomial
from purestep._schedules.standard import constant, cosine_decay, join_schedules, linear, warmup_cosine_decay
from purestep._schedules.warmup import (
    inverse_sqrt,
    warmup_constant,
    warmup_cosine,
    warmup_exponential_decay,
    warmup_linear_decay,
    warmup_stable_decay,
)

__all__ = [
    "constant",
    "cosine_decay",
    "cosine_onecycle",
    "exponential_decay",
    "inverse_sqrt",
    "join_schedules",
    "linear",
    "linear_onecycle",
    "piecewise_constant",
    "piecewise_interpolate",
    "polynomial",
    "sgdr",
    "warmup_constant",
    "warmup_cosine",
    "warmup_cosine_decay",
    "warmup_exponential_decay",
    "warmup_linear_decay",
    "warmup_stable_decay",
]


def __dir__() -> list[str]:
    return sorted(__all__)
