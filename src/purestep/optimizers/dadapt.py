"""D-adapted AdamW."""

import mlx.core as mx

from purestep.transforms.base import GradientTransform
from purestep.transforms.dadapt import scale_by_dadapt
from purestep.types import ScalarOrSchedule


def dadapt_adamw(
    learning_rate: ScalarOrSchedule = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    estim_lr0: float = 1e-6,
    weight_decay: float | mx.array = 0.0,
) -> GradientTransform:
    """`scale_by_dadapt`, which takes the learning rate and the decay (arXiv:2301.07733).

    Args:
        learning_rate: a factor on the estimate, at least 0, or a schedule that falls from 1.
        betas: as in `scale_by_dadapt`, like the arguments that follow.
        eps: added to the denominators.
        estim_lr0: the first estimate.
        weight_decay: decoupled, at least 0.

    >>> transform = dadapt_adamw(estim_lr0=0.01)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    -0.01
    """
    return scale_by_dadapt(learning_rate, betas, eps, estim_lr0, weight_decay)
