"""Schedules: functions from the count of updates to a value, such as a learning rate.

The sections of `__all__` are the table of contents.
"""

from functools import partial

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
    # Constant, changing, decaying
    "constant",
    "cosine_decay",
    "exponential_decay",
    "linear",
    "polynomial",
    # In pieces and in sequence
    "join_schedules",
    "piecewise_constant",
    "piecewise_interpolate",
    # With a warm-up
    "inverse_sqrt",
    "warmup_constant",
    "warmup_cosine",
    "warmup_cosine_decay",
    "warmup_exponential_decay",
    "warmup_linear_decay",
    "warmup_stable_decay",
    # In cycles
    "cosine_onecycle",
    "linear_onecycle",
    "sgdr",
]
__dir__ = partial(sorted, __all__)
