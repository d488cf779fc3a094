"""Measurements of states and gradients."""

from functools import partial

from purestep._graph.counting import step_flops
from purestep._measures.finite import nonfinite_paths
from purestep._measures.transformers import transformer_flops

__all__ = [
    "nonfinite_paths",
    # The cost of a step
    "step_flops",
    "transformer_flops",
]

__dir__ = partial(sorted, __all__)
