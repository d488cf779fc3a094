"""Lion."""

from collections.abc import Callable

import mlx.core as mx

from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.lion import scale_by_lion
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.transforms.weight_decay import add_decayed_weights
from purestep.types import Params, ScalarOrSchedule, Tree


def lion(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.99,
    mu_dtype: mx.Dtype | None = None,
    weight_decay: float | mx.array = 1e-3,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """`scale_by_lion`, `add_decayed_weights`, then `scale_by_learning_rate` (arXiv:2302.06675).

    Every step is as long as the learning rate in every coordinate: take a rate 3 to 10 times smaller than
    AdamW's, and a decay as much larger.

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        b1: as in `scale_by_lion`, like the arguments that follow.
        b2: decay of the mean of gradients.
        mu_dtype: the dtype in which that mean is stored.
        weight_decay: at least 0.
        mask: which parameters decay, as in `add_decayed_weights`.

    >>> transform = lion(1e-3, weight_decay=0.1)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.0011
    """
    return chain(
        scale_by_lion(b1, b2, mu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
