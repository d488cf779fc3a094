"""Yogi."""

from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.transforms.yogi import scale_by_yogi
from purestep.types import ScalarOrSchedule


def yogi(
    learning_rate: ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-3
) -> GradientTransform:
    """`scale_by_yogi`, then `scale_by_learning_rate` (Zaheer et al., NeurIPS 2018).

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        b1: as in `scale_by_yogi`, like the arguments that follow.
        b2: 1 less the part of the squared gradient by which its mean moves.
        eps: added outside the root.

    >>> import mlx.core as mx
    >>> transform = yogi(1e-3)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(50.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.001
    """
    return chain(scale_by_yogi(b1, b2, eps), scale_by_learning_rate(learning_rate))
