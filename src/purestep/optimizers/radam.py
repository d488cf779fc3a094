"""RAdam."""

from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.radam import scale_by_radam
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.types import ScalarOrSchedule


def radam(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    threshold: float = 5.0,
    *,
    nesterov: bool = False,
) -> GradientTransform:
    """`scale_by_radam`, then `scale_by_learning_rate` (arXiv:1908.03265).

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        b1: as in `scale_by_radam`, like the arguments that follow.
        b2: decay of the mean of squares.
        eps: added outside the root.
        eps_root: added inside the root.
        threshold: from when on the mean of squares is used, at least 4.
        nesterov: look ahead by one step of momentum.

    >>> import mlx.core as mx
    >>> transform = radam(1e-3)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)  # the first updates are those of momentum
    -0.002
    """
    return chain(
        scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )
