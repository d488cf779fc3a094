"""Adam and AdamW."""

from collections.abc import Callable

import mlx.core as mx

from purestep.transforms.adam import scale_by_adam
from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.transforms.weight_decay import add_decayed_weights
from purestep.types import Params, ScalarOrSchedule, Tree


def adam(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransform:
    """`scale_by_adam`, then `scale_by_learning_rate`; bias-corrected, as published (arXiv:1412.6980).

    Args:
        learning_rate: a number of at least 0, or a schedule.
        b1: as in `scale_by_adam`, like the arguments that follow.
        b2: decay of the mean of squares.
        eps: added outside the root.
        eps_root: added inside the root.
        mu_dtype: the dtype in which the mean of gradients is stored.
        nesterov: NAdam's look-ahead.

    >>> transform = adam(1e-3)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.001
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    weight_decay: float | mx.array = 1e-4,
    mask: Tree | Callable[[Params], Tree] | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransform:
    """`scale_by_adam`, `add_decayed_weights`, then `scale_by_learning_rate` (arXiv:1711.05101).

    The decay is decoupled: each step takes `learning_rate * weight_decay` off a selected parameter.

    Args:
        learning_rate: a number of at least 0, or a schedule.
        b1: as in `scale_by_adam`, like the arguments that follow.
        b2: decay of the mean of squares.
        eps: added outside the root.
        eps_root: added inside the root.
        mu_dtype: the dtype in which the mean of gradients is stored.
        weight_decay: at least 0.
        mask: which parameters decay, as in `add_decayed_weights`; `transforms.matrices` spares vectors.
        nesterov: NAdam's look-ahead.

    >>> transform = adamw(1e-3, weight_decay=0.1)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(0.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.0001
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
