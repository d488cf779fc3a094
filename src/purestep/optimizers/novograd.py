"""NovoGrad."""

import mlx.core as mx

from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.novograd import scale_by_novograd
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.types import ScalarOrSchedule


def novograd(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.25,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: float | mx.array = 0.0,
) -> GradientTransform:
    """`scale_by_novograd`, then `scale_by_learning_rate` (arXiv:1905.11286).

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        b1: as in `scale_by_novograd`, like the arguments that follow.
        b2: decay of the mean of squared norms.
        eps: added outside the root.
        eps_root: added inside the root.
        weight_decay: at least 0; it passes through the momentum.

    >>> transform = novograd(1e-3, weight_decay=0.1)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.0011
    """
    return chain(
        scale_by_novograd(b1, b2, eps, eps_root, weight_decay), scale_by_learning_rate(learning_rate)
    )
