"""DoG and DoWG: no learning rate to tune."""

from collections.abc import Callable

import mlx.core as mx

from purestep.transforms.base import GradientTransform, identity
from purestep.transforms.combining import chain
from purestep.transforms.distance import scale_by_dog, scale_by_dowg
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.transforms.weight_decay import add_decayed_weights
from purestep.types import Params, ScalarOrSchedule, Tree


def dog(
    learning_rate: ScalarOrSchedule = 1.0,
    init_step: tuple[str, float] = ("heuristic", 1e-6),
    eps: float = 1e-8,
    weight_decay: float | mx.array | None = None,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """`add_decayed_weights` (when given), `scale_by_dog`, then `scale_by_learning_rate` (arXiv:2302.12022).

    The decay is added to the gradient, and so counts in its norm.

    Args:
        learning_rate: a factor on the step size found, at least 0, or a schedule.
        init_step: as in `scale_by_dog`; ("heuristic", 1e-4) is advised with batch normalization.
        eps: as in `scale_by_dog`.
        weight_decay: at least 0.
        mask: which parameters decay, as in `add_decayed_weights`.

    >>> transform = dog(init_step=("distance", 0.1))
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    -0.1
    """
    decay = identity() if weight_decay is None else add_decayed_weights(weight_decay, mask)
    return chain(decay, scale_by_dog(init_step, eps), scale_by_learning_rate(learning_rate))


def dowg(
    learning_rate: ScalarOrSchedule = 1.0,
    init_estim_sq_dist: float | None = None,
    eps: float = 1e-4,
    weight_decay: float | mx.array | None = None,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """`add_decayed_weights` (when given), `scale_by_dowg`, then `scale_by_learning_rate` (arXiv:2305.16284).

    The decay is added to the gradient, and so counts in its norm.

    Args:
        learning_rate: a factor on the step size found, at least 0, or a schedule.
        init_estim_sq_dist: as in `scale_by_dowg`.
        eps: as in `scale_by_dowg`.
        weight_decay: at least 0.
        mask: which parameters decay, as in `add_decayed_weights`.

    >>> transform = dowg(init_estim_sq_dist=0.04, eps=1e-8)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    -0.2
    """
    decay = identity() if weight_decay is None else add_decayed_weights(weight_decay, mask)
    return chain(decay, scale_by_dowg(init_estim_sq_dist, eps), scale_by_learning_rate(learning_rate))
