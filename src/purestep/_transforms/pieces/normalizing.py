"""Centered gradients, and updates divided by their norm."""

import mlx.core as mx

from purestep._core import checks, norms, sums, tree
from purestep._core.types import Params, Updates
from purestep._transforms.core.base import GradientTransform, without_state
from purestep._transforms.core.quotients import nonzero


def centralize() -> GradientTransform:
    """Center the gradient of each output unit at 0; vectors and 0-d arrays are unchanged.

    The mean over all axes but the first is subtracted: with [out, in] weights these are the inputs of a unit,
    as in the paper.

    Differences from optax:

    1. The axes are the same, but optax's weights are [in, out], so its means are taken over the outputs.

    Reference: Yong et al., Gradient centralization, arXiv:2004.01461.

    >>> centralize().update({"w": mx.array([[1.0, 3.0], [0.0, 8.0]])}, ())[0]["w"]
    array([[-1, 1],
           [-4, 4]], dtype=float32)
    """

    def centered(update: mx.array) -> mx.array:
        if update.ndim < 2 or update.size == 0:
            return update
        wide = update.astype(mx.float32)
        return (wide - sums.mean(wide, tuple(range(1, update.ndim)), keepdims=True)).astype(update.dtype)

    return without_state("centralize", lambda updates, params: tree.map(centered, updates))


def normalize_by_update_norm(
    scale_factor: float | mx.array = 1.0, eps: float | mx.array = 1e-6
) -> GradientTransform:
    """Divide all updates by their joint norm: `scale_factor * u / (norm + eps)`, with the norm in float32.

    Differences from optax:

    1. With an `eps` of 0, updates of norm 0 are unchanged. optax returns NaN.

    Args:
        scale_factor: the norm of the result; at least 0.
        eps: at least 0.

    >>> updates = {"a": mx.array(3.0), "b": mx.array(4.0)}
    >>> normalize_by_update_norm(eps=0.0).update(updates, ())[0]
    {'a': array(0.6, dtype=float32), 'b': array(0.8, dtype=float32)}
    """
    caller = "normalize_by_update_norm"
    scale_factor = checks.number(caller, "scale_factor", scale_factor, least=0)
    eps = checks.number(caller, "eps", eps, least=0)

    def normalize(updates: Updates, params: Params | None) -> Updates:
        norm = norms.norm(updates)
        factor = scale_factor / nonzero(norm, norm + eps, eps)
        return tree.map(lambda u: (factor * u).astype(u.dtype), updates)

    return without_state(caller, normalize, elementwise=True)
