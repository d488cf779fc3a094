"""Rprop."""

import mlx.core as mx

from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.rprop import scale_by_rprop
from purestep.transforms.scaling import scale


def rprop(
    learning_rate: float | mx.array,
    eta_minus: float = 0.5,
    eta_plus: float = 1.2,
    min_step_size: float = 1e-6,
    max_step_size: float = 50.0,
) -> GradientTransform:
    """`scale_by_rprop`, then `scale(-1.0)` (Riedmiller and Braun, 1993).

    As PyTorch's; optax 0.2.8 is a step late, as `scale_by_rprop` tells.

    Args:
        learning_rate: the first step size of every element, greater than 0; no schedule can follow it.
        eta_minus: as in `scale_by_rprop`, like the arguments that follow.
        eta_plus: by how much a step grows.
        min_step_size: the shortest step.
        max_step_size: the longest step.

    >>> transform = rprop(0.01)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.01
    """
    return chain(
        scale_by_rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size), scale(-1.0)
    )
