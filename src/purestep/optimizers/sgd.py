"""Stochastic gradient descent."""

import mlx.core as mx

from purestep.transforms.base import GradientTransform, identity
from purestep.transforms.combining import chain
from purestep.transforms.momentum import trace
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.types import ScalarOrSchedule


def sgd(
    learning_rate: ScalarOrSchedule,
    momentum: float | None = None,
    nesterov: bool = False,
    accumulator_dtype: mx.Dtype | None = None,
) -> GradientTransform:
    """`trace` (when momentum is given), then `scale_by_learning_rate`.

    Args:
        learning_rate: a number of at least 0, or a schedule.
        momentum: the decay of `trace`, in [0, 1].
        nesterov: as in `trace`.
        accumulator_dtype: as in `trace`.

    >>> transform = sgd(0.1, momentum=0.9)
    >>> params = {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.2, dtype=float32)}
    """
    memory = identity() if momentum is None else trace(momentum, nesterov, accumulator_dtype)
    return chain(memory, scale_by_learning_rate(learning_rate))
