"""AdaBelief."""

from purestep.transforms.base import GradientTransform
from purestep.transforms.belief import scale_by_belief
from purestep.transforms.combining import chain
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.types import ScalarOrSchedule


def adabelief(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    *,
    nesterov: bool = False,
) -> GradientTransform:
    """`scale_by_belief`, then `scale_by_learning_rate` (arXiv:2010.07468).

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        b1: as in `scale_by_belief`, like the arguments that follow.
        b2: decay of the mean of squared distances.
        eps: added outside the root.
        eps_root: added inside the root at every update.
        nesterov: look ahead by one step of momentum.

    >>> import mlx.core as mx
    >>> transform = adabelief(0.9)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -1.0
    """
    return chain(
        scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov), scale_by_learning_rate(learning_rate)
    )
