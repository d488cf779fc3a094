"""SM3: Adagrad with the memory of momentum alone."""

from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.transforms.sm3 import scale_by_sm3
from purestep.types import ScalarOrSchedule


def sm3(learning_rate: ScalarOrSchedule, momentum: float = 0.9) -> GradientTransform:
    """`scale_by_sm3`, then `scale_by_learning_rate` (arXiv:1901.11150); the rate may be a schedule too.

    Args:
        learning_rate: a number of at least 0, or a schedule.
        momentum: `b1` of `scale_by_sm3`, in [0, 1).

    >>> import mlx.core as mx
    >>> transform = sm3(0.1, momentum=0.0)
    >>> params = {"w": mx.array([1.0, 2.0])}
    >>> transform.update({"w": mx.array([3.0, -4.0])}, transform.init(params), params)[0]
    {'w': array([-0.1, 0.1], dtype=float32)}
    """
    return chain(scale_by_sm3(momentum), scale_by_learning_rate(learning_rate))
