"""Sophia."""

from collections.abc import Callable

import mlx.core as mx

from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.transforms.sophia import scale_by_sophia
from purestep.transforms.weight_decay import add_decayed_weights
from purestep.types import Params, ScalarOrSchedule, Tree


def sophia(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.965,
    b2: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float | mx.array = 1e-4,
    weight_decay_mask: Tree | Callable[[Params], Tree] | None = None,
    gamma: float = 0.01,
    clip_threshold: float | None = 1.0,
    update_interval: int = 10,
    mu_dtype: mx.Dtype | None = None,
) -> GradientTransform:
    """`scale_by_sophia`, `add_decayed_weights`, then `scale_by_learning_rate` (arXiv:2305.14342).

    It differs from optax as `scale_by_sophia` says: `update` is handed an estimate of the Hessian's
    diagonal as `hessian=`, and there is no `hessian_diagonal_fn`, `verbose` or
    `print_win_rate_every_n_steps`. How a step makes the estimate is shown there.

    Args:
        learning_rate: a number of at least 0, or a schedule.
        b1: as in `scale_by_sophia`.
        b2: decay of the mean of estimates.
        eps: the least divisor.
        weight_decay: decoupled, at least 0.
        weight_decay_mask: which parameters decay, as in `add_decayed_weights`.
        gamma: as in `scale_by_sophia`, like the arguments that follow.
        clip_threshold: the largest entry of an update, before the learning rate.
        update_interval: updates from one estimate to the next.
        mu_dtype: the dtype in which the mean of gradients is stored.

    >>> transform = sophia(0.1, weight_decay=0.0)
    >>> params = {"w": mx.array(1.0)}
    >>> state = transform.init(params)
    >>> updates, state = transform.update({"w": mx.array(2.0)}, state, params, hessian={"w": mx.array(3.0)})
    >>> round(updates["w"].item(), 5)
    -0.1
    """
    return chain(
        scale_by_sophia(b1, b2, eps, gamma, clip_threshold, update_interval, mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
