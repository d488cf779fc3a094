"""Optimizers for large batches, whose steps follow the size of each layer: LAMB and LARS."""

from collections.abc import Callable

import mlx.core as mx

from purestep.transforms.adam import scale_by_adam
from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.masking import masked
from purestep.transforms.momentum import trace
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.transforms.trust_ratio import scale_by_trust_ratio
from purestep.transforms.weight_decay import add_decayed_weights
from purestep.types import Params, ScalarOrSchedule, Tree


def lamb(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: float | mx.array = 0.0,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """`scale_by_adam`, `add_decayed_weights`, `scale_by_trust_ratio`, then `scale_by_learning_rate`.

    Args:
        learning_rate: a number of at least 0, or a schedule.
        b1: as in `scale_by_adam`, like the arguments that follow.
        b2: decay of the mean of squares.
        eps: added outside the root.
        eps_root: added inside the root.
        weight_decay: as in `add_decayed_weights`.
        mask: which parameters decay.

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
    """`add_decayed_weights`, `scale_by_trust_ratio`, `scale_by_learning_rate`, then `trace`.

    Biases and norms are best left out of both masks: `transforms.matrices`.

    Args:
        learning_rate: a number of at least 0, or a schedule.
        weight_decay: as in `add_decayed_weights`.
        weight_decay_mask: which parameters decay, as in `masked`; True for all.
        trust_coefficient: as in `scale_by_trust_ratio`.
        eps: added under the ratio.
        trust_ratio_mask: which parameters have a rate of their own; True for all.
        momentum: the decay of `trace`.
        nesterov: as in `trace`.

    Reference: You et al., arXiv:1708.03888.

    >>> transform = lars(1.0, trust_coefficient=0.01)
    >>> params = {"w": mx.array([3.0, 4.0])}
    >>> transform.update({"w": mx.array([2.0, 0.0])}, transform.init(params), params)[0]
    {'w': array([-0.05, 0], dtype=float32)}
    """
    return chain(
        masked(add_decayed_weights(weight_decay), weight_decay_mask),
        masked(scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps), trust_ratio_mask),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov),
    )
