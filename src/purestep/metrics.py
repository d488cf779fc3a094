"""Measurements of states and gradients."""

from purestep._core.facades import listing
from purestep._measures.finite import nonfinite_paths

__all__ = [
    "nonfinite_paths",
]

__dir__ = listing(__all__)
