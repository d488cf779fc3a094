"""Functions of layers whose gradients are their own: cheaper, or more accurate, than those MLX derives.

Values are those of MLX bit for bit. `ps.functional` uses these functions in any module; call them in layers
that you write.
"""

from functools import partial

from purestep._layers.activations import gelu, gelu_approx, mish, silu
from purestep._layers.parts import lookup
from purestep._layers.recomputing import recompute
from purestep._layers.reduced import addmm, affine, layer_norm, rms_norm

__all__ = [
    # Activations: the gradient keeps only the input
    "gelu",
    "gelu_approx",
    "mish",
    "silu",
    # Gradients summed in float32
    "lookup",
    "affine",
    "addmm",
    "layer_norm",
    "rms_norm",
    # Recomputation
    "recompute",
]

__dir__ = partial(sorted, __all__)
