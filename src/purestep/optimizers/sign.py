"""Descent along the sign of the gradient."""

import mlx.core as mx

from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.momentum import trace
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.transforms.sign import scale_by_sign
from purestep.types import ScalarOrSchedule


def sign_sgd(learning_rate: ScalarOrSchedule) -> GradientTransform:
    """`scale_by_sign`, then `scale_by_learning_rate` (arXiv:1802.04434).

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.

    >>> transform = sign_sgd(0.1)
    >>> params = {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(-7.0)}, transform.init(params), params)[0]
    {'w': array(0.1, dtype=float32)}
    """
    return chain(scale_by_sign(), scale_by_learning_rate(learning_rate))


def signum(
    learning_rate: ScalarOrSchedule, beta: float = 0.9, accumulator_dtype: mx.Dtype | None = None
) -> GradientTransform:
    """`trace`, `scale_by_sign`, then `scale_by_learning_rate` (arXiv:1802.04434, algorithm 2).

    Differences from optax:

    1. The state holds the decayed sum of gradients where optax holds their running mean, which is
       `1 - beta` times as large and so of the same sign.

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        beta: the decay of `trace`, in [0, 1).
        accumulator_dtype: as in `trace`.

    >>> transform = signum(0.1)
    >>> params = {"w": mx.array(1.0)}
    >>> state = transform.init(params)
    >>> for gradient in (2.0, -1.0):
    ...     updates, state = transform.update({"w": mx.array(gradient)}, state, params)
    >>> updates  # 0.9 * 2 outweighs -1
    {'w': array(-0.1, dtype=float32)}
    """
    return chain(
        trace(beta, accumulator_dtype=accumulator_dtype),
        scale_by_sign(),
        scale_by_learning_rate(learning_rate),
    )
