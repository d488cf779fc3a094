"""Measurements of states and gradients."""

from functools import partial

from purestep._measures.finite import nonfinite_paths

__all__ = [
    "nonfinite_paths",
]

__dir__ = partial(sorted, __all__)
