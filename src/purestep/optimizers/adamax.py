"""AdaMax, and AdaMax with decoupled weight decay."""

from collections.abc import Callable

import mlx.core as mx

from purestep.transforms.adamax import scale_by_adamax
from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.transforms.weight_decay import add_decayed_weights
from purestep.types import Params, ScalarOrSchedule, Tree


def adamax(
    learning_rate: ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> GradientTransform:
    """`scale_by_adamax`, then `scale_by_learning_rate` (arXiv:1412.6980, section 7.1).

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        b1: as in `scale_by_adamax`, like the arguments that follow.
        b2: how the largest size fades.
        eps: added to the size.

    >>> transform = adamax(1e-3)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.001
    """
    return chain(scale_by_adamax(b1, b2, eps), scale_by_learning_rate(learning_rate))


def adamaxw(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float | mx.array = 1e-4,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """`scale_by_adamax`, `add_decayed_weights`, then `scale_by_learning_rate`.

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        b1: as in `scale_by_adamax`, like the two arguments that follow.
        b2: how the largest size fades.
        eps: added to the size.
        weight_decay: at least 0.
        mask: which parameters decay, as in `add_decayed_weights`.

    Reference: Kingma and Ba, arXiv:1412.6980; Loshchilov and Hutter, arXiv:1711.05101.

    >>> transform = adamaxw(1e-3, weight_decay=0.1)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.0011
    """
    return chain(
        scale_by_adamax(b1, b2, eps),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
