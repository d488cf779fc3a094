"""Steps in proportion to the parameters: the layerwise rates of LARS and LAMB."""

import mlx.core as mx

from purestep import checks
from purestep.transforms.base import GradientTransform
from purestep.transforms.leafwise import block_norm, leafwise


def scale_by_trust_ratio(
    min_norm: float | mx.array = 0.0,
    trust_coefficient: float | mx.array = 1.0,
    eps: float | mx.array = 0.0,
) -> GradientTransform:
    """Give each array of updates the norm of its parameters, times `trust_coefficient`.

    With `P` and `U` the norms of an array of parameters and of its updates, neither taken to be less
    than `min_norm`, the updates are multiplied by `trust_coefficient * P / (U + eps)`, or by 1 where
    either norm is 0. Norms are float32, and so are the updates.

    Args:
        min_norm: at least 0.
        trust_coefficient: at least 0.
        eps: at least 0.

    Raises:
        ValueError: at update, if params is not given, or if shapes differ, with the path.

    Reference: You et al., LARS, arXiv:1708.03888; LAMB, arXiv:1904.00962.

    >>> params = {"w": mx.array([3.0, 4.0])}
    >>> scale_by_trust_ratio().update({"w": mx.array([0.0, 2.0])}, (), params)[0]
    {'w': array([0, 5], dtype=float32)}
    """
    where = "scale_by_trust_ratio"
    min_norm = checks.number(where, "min_norm", min_norm, least=0)
    trust_coefficient = checks.number(where, "trust_coefficient", trust_coefficient, least=0)
    eps = checks.number(where, "eps", eps, least=0)

    def scaled(update: mx.array, param: mx.array) -> mx.array:
        of_param = mx.maximum(block_norm(param), min_norm)
        of_update = mx.maximum(block_norm(update), min_norm)
        moving = mx.logical_and(of_param != 0, of_update != 0)
        ratio = trust_coefficient * of_param / mx.where(moving, of_update + eps, 1.0)
        return update.astype(mx.float32) * mx.where(moving, ratio, 1.0)

    return leafwise(where, scaled)
