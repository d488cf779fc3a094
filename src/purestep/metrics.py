"""Measurements of steps, states and gradients.

`train_step(..., measure=[...])` takes the measurements of this namespace and adds their results to its
metrics.
"""

from functools import partial

from purestep._graph.counting import step_flops
from purestep._measures.activations import activations
from purestep._measures.attention import attention_entropy, head_entropies
from purestep._measures.curvature import Sharpness, curvature, sharpness
from purestep._measures.finite import nonfinite_paths
from purestep._measures.groups import layer_of
from purestep._measures.noise import NoiseScale, noise_scale
from purestep._measures.norms import drift, grad_norms, norms, update_ratios, weight_norms
from purestep._measures.rank import effective_rank
from purestep._measures.shares import nonfinite_share, zero_share
from purestep._measures.transformers import transformer_flops
from purestep._steps.core.measuring import Measurement, Moment

__all__ = [
    # Measurements of a step, from what it computes anyway
    "grad_norms",
    "weight_norms",
    "drift",
    "update_ratios",
    "nonfinite_share",
    "zero_share",
    "noise_scale",
    "activations",
    "attention_entropy",
    # A measurement with a backward pass of its own
    "curvature",
    # Measurements of your own
    "Measurement",
    "Moment",
    "layer_of",
    # Between steps
    "NoiseScale",
    "norms",
    "head_entropies",
    "effective_rank",
    "sharpness",
    "Sharpness",
    "nonfinite_paths",
    # The cost of a step
    "step_flops",
    "transformer_flops",
]

__dir__ = partial(sorted, __all__)
