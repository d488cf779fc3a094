"""Measurements of states and gradients."""

from purestep._measures.finite import nonfinite_paths

__all__ = [
    "nonfinite_paths",
]


def __dir__() -> list[str]:
    return sorted(__all__)
