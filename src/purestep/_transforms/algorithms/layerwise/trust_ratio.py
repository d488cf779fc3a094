"""LARS and LAMB: steps in proportion to the norm of the parameters."""

from collections.abc import Callable

import mlx.core as mx

from purestep._core import checks
from purestep._core.types import Params, ScalarOrSchedule, Tree
from purestep._transforms.algorithms.adam.adam import scale_by_adam
from purestep._transforms.core.base import GradientTransform
from purestep._transforms.core.combining import chain
from purestep._transforms.core.leafwise import block_norm, leafwise
from purestep._transforms.pieces.momentum import trace
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights
from purestep._transforms.wrappers.masking import masked


def scale_by_trust_ratio(
    min_norm: float | mx.array = 0.0,
    trust_coefficient: float | mx.array = 1.0,
    eps: float | mx.array = 0.0,
) -> GradientTransform:
    """Scale each array of updates to the norm of its parameter, times `trust_coefficient`.

    With `P` the norm of a parameter and `U` the norm of its update, both at least `min_norm`, the update is
    multiplied by `trust_coefficient * P / (U + eps)`, or by 1 if `P` or `U` is 0. Norms and updates are
    float32.

    Args:
        min_norm: a lower bound on both norms, at least 0.
        trust_coefficient: at least 0.
        eps: added to the norm of the updates, at least 0.

    Raises:
        ValueError: at update, if params is not given, or if shapes differ, with the path.

    Reference: You et al., LARS, arXiv:1708.03888; LAMB, arXiv:1904.00962.

    >>> params = {"w": mx.array([3.0, 4.0])}
    >>> scale_by_trust_ratio().update({"w": mx.array([0.0, 2.0])}, (), params)[0]
    {'w': array([0, 5], dtype=float32)}
    """
    caller = "scale_by_trust_ratio"
    min_norm = checks.number(caller, "min_norm", min_norm, least=0)
    trust_coefficient = checks.number(caller, "trust_coefficient", trust_coefficient, least=0)
    eps = checks.number(caller, "eps", eps, least=0)

    def scaled(update: mx.array, param: mx.array) -> mx.array:
        of_param = mx.maximum(block_norm(param), min_norm)
        of_update = mx.maximum(block_norm(update), min_norm)
        moving = mx.logical_and(of_param != 0, of_update != 0)
        ratio = trust_coefficient * of_param / mx.where(moving, of_update + eps, 1.0)
        return update.astype(mx.float32) * mx.where(moving, ratio, 1.0)

    return leafwise(caller, scaled)


def lamb(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: float | mx.array = 0.0,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """Chain `scale_by_adam`, `add_decayed_weights`, `scale_by_trust_ratio` and `scale_by_learning_rate`.

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, eps, eps_root: as in `scale_by_adam`.
        weight_decay, mask: as in `add_decayed_weights`.

    Reference: You et al., arXiv:1904.00962.

    >>> transform = lamb(0.01)
    >>> params = {"w": mx.array([3.0, 4.0])}
    >>> updates, _ = transform.update({"w": mx.array([1.0, 0.0])}, transform.init(params), params)
    >>> round(updates["w"][0].item(), 6)
    -0.05
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_learning_rate(learning_rate),
    )


def lars(
    learning_rate: ScalarOrSchedule,
    weight_decay: float | mx.array = 0.0,
    weight_decay_mask: bool | Tree | Callable[[Params], Tree] = True,
    trust_coefficient: float | mx.array = 0.001,
    eps: float | mx.array = 0.0,
    trust_ratio_mask: bool | Tree | Callable[[Params], Tree] = True,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> GradientTransform:
    """Chain `add_decayed_weights`, `scale_by_trust_ratio`, `scale_by_learning_rate` and `trace`.

    To exclude biases and norms, pass `transforms.matrices` as both masks.

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        weight_decay: as in `add_decayed_weights`.
        weight_decay_mask: which parameters decay, as in `masked`; True for all.
        trust_coefficient, eps: as in `scale_by_trust_ratio`.
        trust_ratio_mask: which updates are scaled by the trust ratio, as in `masked`; True for all.
        momentum: the decay of `trace`, in [0, 1].
        nesterov: as in `trace`.

    Reference: You et al., arXiv:1708.03888.

    >>> transform, params = lars(1.0, trust_coefficient=0.01), {"w": mx.array([3.0, 4.0])}
    >>> transform.update({"w": mx.array([2.0, 0.0])}, transform.init(params), params)[0]
    {'w': array([-0.05, 0], dtype=float32)}
    """
    return chain(
        masked(add_decayed_weights(weight_decay), weight_decay_mask),
        masked(scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps), trust_ratio_mask),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov),
    )
