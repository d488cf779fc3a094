"""AdaDelta."""

from collections.abc import Callable

import mlx.core as mx

from purestep.transforms.adadelta import scale_by_adadelta
from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.transforms.weight_decay import add_decayed_weights
from purestep.types import Params, ScalarOrSchedule, Tree


def adadelta(
    learning_rate: ScalarOrSchedule | None = None,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float | mx.array = 0.0,
    weight_decay_mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """`add_decayed_weights`, `scale_by_adadelta`, then `scale_by_learning_rate` (arXiv:1212.5701).

    Differences from optax:

    1. Without a learning rate it is 1, as published, and descends. Optax then leaves the last transform out,
       with its change of sign, and climbs.

    The decay comes first and is rescaled with the gradient, as PyTorch's is.

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule; `None` is 1.
        rho: decay of both means.
        eps: as in `scale_by_adadelta`.
        weight_decay: at least 0.
        weight_decay_mask: which parameters decay, as in `add_decayed_weights`.

    >>> transform = adadelta(1.0)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.003162
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_adadelta(rho, eps),
        scale_by_learning_rate(1.0 if learning_rate is None else learning_rate),
    )
