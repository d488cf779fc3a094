"""RMSProp, plain and centered."""

from purestep.transforms.base import GradientTransform, identity
from purestep.transforms.combining import chain
from purestep.transforms.momentum import trace
from purestep.transforms.rms import scale_by_rms, scale_by_stddev
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.types import ScalarOrSchedule


def rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: float | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> GradientTransform:
    """`scale_by_rms` (centered: `scale_by_stddev`), `scale_by_learning_rate`, then `trace` if momentum.

    The momentum gathers steps, not directions: a change of the rate reaches it by and by. To PyTorch's
    RMSprop this is equal with `eps_in_sqrt=False`, its `alpha` as `decay`, and a constant rate.

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        decay: as in `scale_by_rms`, like the three arguments that follow.
        eps: added to the root, or inside it.
        initial_scale: where the mean of squares begins.
        eps_in_sqrt: add `eps` inside the root.
        centered: divide by the standard deviation.
        momentum: the decay of `trace`, in [0, 1); `None` leaves it out.
        nesterov: as in `trace`.
        bias_correction: as in `scale_by_rms`.

    Reference: Tieleman and Hinton, Lecture 6.5, 2012; centered: Graves, arXiv:1308.0850.

    >>> import mlx.core as mx
    >>> transform = rmsprop(0.5, decay=0.75)
    >>> params = {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(4.0)}, transform.init(params), params)[0]
    {'w': array(-1, dtype=float32)}
    """
    divide = scale_by_stddev if centered else scale_by_rms
    return chain(
        divide(decay, eps, initial_scale, eps_in_sqrt, bias_correction),
        scale_by_learning_rate(learning_rate),
        identity() if momentum is None else trace(momentum, nesterov),
    )
