"""Adagrad."""

from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.rms import scale_by_rss
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.types import ScalarOrSchedule


def adagrad(
    learning_rate: ScalarOrSchedule, initial_accumulator_value: float = 0.1, eps: float = 1e-7
) -> GradientTransform:
    """`scale_by_rss`, then `scale_by_learning_rate`.

    PyTorch's Adagrad adds its `eps` outside the root: the two are equal when both are 0.

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        initial_accumulator_value: as in `scale_by_rss`.
        eps: added inside the root.

    Reference: Duchi et al., JMLR 12, 2011.

    >>> import mlx.core as mx
    >>> transform = adagrad(0.5, initial_accumulator_value=0.0)
    >>> params = {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(4.0)}, transform.init(params), params)[0]
    {'w': array(-0.5, dtype=float32)}
    """
    return chain(scale_by_rss(initial_accumulator_value, eps), scale_by_learning_rate(learning_rate))
