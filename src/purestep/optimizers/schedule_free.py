"""Schedule-free SGD and AdamW."""

import mlx.core as mx

from purestep import schedules
from purestep.optimizers.sgd import sgd
from purestep.transforms.base import GradientTransform, identity
from purestep.transforms.combining import chain
from purestep.transforms.rms import scale_by_rms
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.transforms.schedule_free import schedule_free
from purestep.transforms.weight_decay import add_decayed_weights
from purestep.types import ScalarOrSchedule


def schedule_free_sgd(
    learning_rate: ScalarOrSchedule = 1.0,
    warmup_steps: int | None = None,
    b1: float = 0.9,
    weight_decay: float | mx.array | None = None,
    weight_lr_power: float = 2.0,
    state_dtype: mx.Dtype | None = None,
) -> GradientTransform:
    """`schedule_free` around `add_decayed_weights` (when given) and `sgd` (arXiv:2405.15682).

    Args:
        learning_rate: a number of at least 0; a schedule only when there are no `warmup_steps`.
        warmup_steps: updates over which the rate rises from 0 in a straight line.
        b1: as in `schedule_free`, like the arguments that follow but one.
        weight_decay: at least 0.
        weight_lr_power: how much more large learning rates count in the average.
        state_dtype: the dtype in which `z` is stored.

    >>> transform = schedule_free_sgd(0.1, b1=0.5)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    -0.2
    """
    rate = _warmed_up(learning_rate, warmup_steps)
    decay = identity() if weight_decay is None else add_decayed_weights(weight_decay)
    return schedule_free(chain(decay, sgd(rate)), rate, b1, weight_lr_power, state_dtype)


def schedule_free_adamw(
    learning_rate: ScalarOrSchedule = 0.0025,
    warmup_steps: int | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float | mx.array = 0.0,
    weight_lr_power: float = 2.0,
    state_dtype: mx.Dtype | None = None,
) -> GradientTransform:
    """`schedule_free` around AdamW without momentum (arXiv:2405.15682).

    That is `scale_by_rms` with its bias corrected, `add_decayed_weights` and `scale_by_learning_rate`.

    Args:
        learning_rate: a number of at least 0; a schedule only when there are no `warmup_steps`.
        warmup_steps: updates over which the rate rises from 0 in a straight line.
        b1: as in `schedule_free`.
        b2: decay of the mean of squares, in [0, 1).
        eps: added outside the root, at least 0.
        weight_decay: decoupled, at least 0; it decays `z` by the trained parameters.
        weight_lr_power: as in `schedule_free`.
        state_dtype: the dtype in which `z` is stored.

    >>> transform = schedule_free_adamw(0.1)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    -0.1
    """
    rate = _warmed_up(learning_rate, warmup_steps)
    optimizer = chain(
        scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(rate),
    )
    return schedule_free(optimizer, rate, b1, weight_lr_power, state_dtype)


def _warmed_up(learning_rate: ScalarOrSchedule, warmup_steps: int | None) -> ScalarOrSchedule:
    if warmup_steps is None:
        return learning_rate
    if callable(learning_rate):
        raise ValueError("schedule_free: learning_rate must be a number when warmup_steps is given")
    return schedules.linear(0.0, learning_rate, warmup_steps)  # pyright: ignore[reportArgumentType]
