"""Adam and AdamW with Nesterov's look-ahead."""

from collections.abc import Callable

import mlx.core as mx

from purestep.optimizers.adam import adam, adamw
from purestep.transforms.base import GradientTransform
from purestep.types import Params, ScalarOrSchedule, Tree


def nadam(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    *,
    nesterov: bool = True,
) -> GradientTransform:
    """`adam` with `nesterov`: `scale_by_adam`, then `scale_by_learning_rate`.

    The momentum is the constant `b1`. PyTorch's NAdam lets it rise to that; with a `momentum_decay` so large
    that it is there from the first step, the two are equal.

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        b1: as in `scale_by_adam`, like the arguments that follow.
        b2: decay of the mean of squares.
        eps: added outside the root.
        eps_root: added inside the root.
        mu_dtype: the dtype in which the mean of gradients is stored.
        nesterov: the look-ahead; without it this is `adam`.

    Reference: Dozat, Incorporating Nesterov momentum into Adam, 2016.

    >>> transform = nadam(1e-3)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)  # 0.9 * 0.1 / 0.19 + 0.1 / 0.1 rates
    -0.001474
    """
    return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)


def nadamw(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    weight_decay: float | mx.array = 1e-4,
    mask: Tree | Callable[[Params], Tree] | None = None,
    *,
    nesterov: bool = True,
) -> GradientTransform:
    """`adamw` with `nesterov`: `scale_by_adam`, `add_decayed_weights`, then `scale_by_learning_rate`.

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        b1: as in `scale_by_adam`, like the arguments that follow.
        b2: decay of the mean of squares.
        eps: added outside the root.
        eps_root: added inside the root.
        mu_dtype: the dtype in which the mean of gradients is stored.
        weight_decay: at least 0.
        mask: which parameters decay, as in `add_decayed_weights`.
        nesterov: the look-ahead; without it this is `adamw`.

    Reference: Dozat, 2016; Loshchilov and Hutter, arXiv:1711.05101.

    >>> transform = nadamw(1e-3, weight_decay=0.1)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.001574
    """
    return adamw(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=nesterov)
