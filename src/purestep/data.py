"""Batches as functions of the step or of the state."""

from purestep._data.completions import Completions
from purestep._data.rollout import rollout
from purestep._data.sampling import sampler
from purestep._data.source import Source
from purestep._data.text import Characters, RandomWindows, consecutive_windows
from purestep._data.truncation import truncated_logits

__all__ = [
    "Characters",
    "Completions",
    "consecutive_windows",
    "RandomWindows",
    "rollout",
    "sampler",
    "Source",
    "truncated_logits",
]


def __dir__() -> list[str]:
    return sorted(__all__)
