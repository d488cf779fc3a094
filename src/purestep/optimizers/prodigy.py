"""Prodigy."""

import mlx.core as mx

from purestep.transforms.base import GradientTransform
from purestep.transforms.prodigy import scale_by_prodigy
from purestep.types import ScalarOrSchedule


def prodigy(
    learning_rate: ScalarOrSchedule = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    beta3: float | None = None,
    eps: float = 1e-8,
    estim_lr0: float = 1e-6,
    estim_lr_coef: float = 1.0,
    weight_decay: float | mx.array = 0.0,
    safeguard_warmup: bool = False,
) -> GradientTransform:
    """`scale_by_prodigy`, which takes the learning rate and the decay (arXiv:2306.06101).

    Args:
        learning_rate: a factor on the estimate, at least 0, or a schedule that falls from 1.
        betas: as in `scale_by_prodigy`, like the arguments that follow.
        beta3: decay of the sums behind the estimate.
        eps: added to the denominator, times the estimate.
        estim_lr0: the first estimate.
        estim_lr_coef: a factor on every further estimate.
        weight_decay: decoupled, at least 0.
        safeguard_warmup: for a schedule that starts with a warmup.

    >>> transform = prodigy(estim_lr0=0.01)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    -0.01
    """
    return scale_by_prodigy(
        learning_rate, betas, beta3, eps, estim_lr0, estim_lr_coef, weight_decay, safeguard_warmup
    )
