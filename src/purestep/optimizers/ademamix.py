"""AdEMAMix and its simplified form."""

from collections.abc import Callable

import mlx.core as mx

from purestep.transforms.ademamix import scale_by_ademamix, scale_by_simplified_ademamix
from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.transforms.weight_decay import add_decayed_weights
from purestep.types import Params, ScalarOrSchedule, Tree


def ademamix(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 5.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    weight_decay: float | mx.array = 0.0,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """`scale_by_ademamix`, `add_decayed_weights`, then `scale_by_learning_rate` (arXiv:2409.03137).

    Args:
        learning_rate: a number of at least 0, or a schedule.
        b1: as in `scale_by_ademamix`, like the arguments that follow.
        b2: decay of the mean of squares.
        b3: decay of the slow mean.
        alpha: weight of the slow mean, 5 here by default, 6 there, as in optax.
        eps: added outside the root.
        eps_root: added inside the root.
        mu_dtype: the dtype in which the means of gradients are stored.
        weight_decay: decoupled, at least 0.
        mask: which parameters decay, as in `add_decayed_weights`.

    >>> transform = ademamix(0.1, b3=0.8)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    -0.2
    """
    return chain(
        scale_by_ademamix(b1, b2, b3, alpha, eps, eps_root, mu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def simplified_ademamix(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.99,
    b2: float = 0.95,
    alpha: ScalarOrSchedule = 0.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float | mx.array = 0.0,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """`scale_by_simplified_ademamix`, `add_decayed_weights`, `scale_by_learning_rate` (arXiv:2502.02431).

    Args:
        learning_rate: a number of at least 0, or a schedule.
        b1: as in `scale_by_simplified_ademamix`, like the arguments that follow.
        b2: decay of the mean of squares.
        alpha: weight of the gradient.
        eps: added outside the root.
        eps_root: added inside the root.
        weight_decay: decoupled, at least 0.
        mask: which parameters decay, as in `add_decayed_weights`.

    >>> transform = simplified_ademamix(0.1, alpha=1.0)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    -0.2
    """
    return chain(
        scale_by_simplified_ademamix(b1, b2, alpha, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
