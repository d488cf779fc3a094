"""MADGRAD."""

import mlx.core as mx

from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.madgrad import scale_by_madgrad
from purestep.transforms.weight_decay import add_decayed_weights
from purestep.types import ScalarOrSchedule


def madgrad(
    learning_rate: ScalarOrSchedule,
    momentum: float = 0.9,
    weight_decay: float | mx.array = 0.0,
    eps: float = 1e-6,
) -> GradientTransform:
    """`add_decayed_weights`, then `scale_by_madgrad`, which takes the learning rate (arXiv:2101.11075).

    The decay is added to the gradient; the authors advise less of it than for SGD, often none.

    Args:
        learning_rate: a number of at least 0, or a schedule.
        momentum: in [0, 1).
        weight_decay: at least 0.
        eps: above 0.

    >>> transform = madgrad(1.0, momentum=0.0, eps=1e-8)
    >>> params = {"w": mx.array(0.0)}
    >>> updates, _ = transform.update({"w": mx.array(8.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    -2.0
    """
    return chain(add_decayed_weights(weight_decay), scale_by_madgrad(learning_rate, momentum, eps))
