"""The sign of gradients, their size left out."""

import mlx.core as mx

from purestep import tree
from purestep.transforms.base import GradientTransform, without_state


def scale_by_sign() -> GradientTransform:
    """Replace every element by its sign: -1, 0 or 1, in the gradient's dtype; NaN stays NaN.

    Reference: Bernstein et al., signSGD, arXiv:1802.04434.

    >>> scale_by_sign().update({"w": mx.array([3.0, 0.0, -0.1])}, ())
    ({'w': array([1, 0, -1], dtype=float32)}, ())
    """
    return without_state("scale_by_sign", lambda updates, params: tree.map(sign, updates))


def sign(x: mx.array) -> mx.array:
    """Return the sign; that of NaN is NaN, where `mx.sign` says 0 and would hide it.

    >>> sign(mx.array([-2.0, float("nan")]))
    array([-1, nan], dtype=float32)
    """
    return mx.where(mx.isnan(x), x, mx.sign(x))
