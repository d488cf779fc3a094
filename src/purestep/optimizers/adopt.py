"""ADOPT."""

from collections.abc import Callable

import mlx.core as mx

from purestep.transforms.adopt import scale_by_adopt
from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.types import ScalarOrSchedule


def adopt(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.9999,
    eps: float = 1e-6,
    mu_dtype: mx.Dtype | None = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[mx.array], mx.array] = lambda x: x**0.25,
) -> GradientTransform:
    """`scale_by_adopt`, then `scale_by_learning_rate` (arXiv:2411.02853). The first update is zero.

    Args:
        learning_rate: a number of at least 0, or a schedule.
        b1: as in `scale_by_adopt`, like the arguments that follow.
        b2: decay of the mean of squares.
        eps: the least divisor.
        mu_dtype: the dtype in which the mean of rescaled gradients is stored.
        nesterov: look ahead by one step of momentum.
        use_clipping: clip the rescaled gradients.
        clip_value_fn: from the number of updates made to the bound.

    >>> transform = adopt(0.1)
    >>> params = {"w": mx.array(1.0)}
    >>> state = transform.init(params)
    >>> for _ in range(2):
    ...     updates, state = transform.update({"w": mx.array(2.0)}, state, params)
    >>> round(updates["w"].item(), 5)
    -0.01
    """
    return chain(
        scale_by_adopt(
            b1,
            b2,
            eps,
            mu_dtype,
            nesterov=nesterov,
            use_clipping=use_clipping,
            clip_value_fn=clip_value_fn,
        ),
        scale_by_learning_rate(learning_rate),
    )
