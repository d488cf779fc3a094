"""Schedule-free learning: an average of the parameters instead of a decaying learning rate."""

from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._schedules.standard import linear
from purestep._transforms.algorithms.adagrad.rmsprop import scale_by_rms
from purestep._transforms.algorithms.momentum.sgd import sgd
from purestep._transforms.core import moments
from purestep._transforms.core.base import (
    GradientTransform,
    check_transform,
    checked,
    identity,
    required,
    taking_extra,
)
from purestep._transforms.core.combining import chain
from purestep._transforms.core.scheduled import value_at
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


class ScheduleFreeState(NamedTuple):
    """State of `schedule_free`.

    Attributes:
        b1: 0-d float32, the weight of the average in the trained parameters.
        weight_sum: 0-d float32, the sum of the weights of the average.
        step_count: 0-d int32, the number of updates plus 1.
        max_lr: 0-d float32, the largest learning rate so far.
        base_optimizer_state: the state of the wrapped optimizer.
        z: like params, float32, or `state_dtype` if given: the parameters that the wrapped optimizer alone
            would change.
    """

    b1: mx.array
    weight_sum: mx.array
    step_count: mx.array
    max_lr: mx.array
    base_optimizer_state: Tree
    z: Tree

    def eval_params(self, params: Params) -> Params:
        """Return the average, in the parameters' dtypes."""
        rest = 1 - self.b1

        def average(y: mx.array, z: mx.array) -> mx.array:
            return ((y.astype(mx.float32) - rest * z.astype(mx.float32)) / self.b1).astype(y.dtype)

        return tree.map(average, params, self.z)


def schedule_free(
    base_optimizer: GradientTransform,
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    weight_lr_power: float = 2.0,
    state_dtype: mx.Dtype | None = None,
) -> GradientTransform:
    """Train at a point between the parameters of an optimizer and their average.

    With `y` the trained parameters, `u` the update of the wrapped optimizer for the gradient at `y`, and `z`
    and `x` initially equal to `y`:

        z = z + u
        w = (largest learning_rate so far) ** weight_lr_power;  c = w / (sum of all w so far)
        x = (1 - c) * x + c * z
        y = b1 * x + (1 - b1) * z

    Evaluate at `x`, which `schedule_free_eval_params` computes from `y` and `z`. The learning rate may warm
    up and need not decay. The wrapped optimizer must have the same learning rate, and no momentum of its own,
    like `adam` with `b1=0`.

    The learning rate in the state is that of the wrapped optimizer. If it is set to another value, the
    weights of the average do not change: they are computed from the argument `learning_rate`.

    As in optax, this function evaluates a schedule one count later than the wrapped optimizer does.

    Args:
        base_optimizer: the optimizer that makes the updates, learning rate and sign included.
        learning_rate: its learning rate, a number of at least 0, a 0-d array or a schedule.
        b1: the weight of the average in `y`, above 0, at most 1.
        weight_lr_power: the exponent of the learning rate in the weights of the average, at least 0.
        state_dtype: the dtype in which `z` is stored; `None` is float32.

    Raises:
        ValueError: at update, if params is not given.

    Differences from optax:

    1. `z` is float32 unless `state_dtype` is given. The average is part of `y`. If the parameters are
       bfloat16, it stops once its steps are smaller than the rounding: keep the parameters in float32.
    2. The step of `y` is computed as `b1 * c * (z - x) + (1 - b1) * u`, not as a difference of two sums.

    Reference: Defazio et al., The road less scheduled, arXiv:2405.15682.

    >>> from purestep.transforms import scale
    >>> transform = schedule_free(scale(-0.5), 0.5, b1=0.5)
    >>> params = {"w": mx.array(0.0)}
    >>> state = transform.init(params)
    >>> for _ in range(2):  # z is 1, then 2
    ...     updates, state = transform.update({"w": mx.array(-2.0)}, state, params)
    ...     params = tree.map(mx.add, params, updates)
    >>> params, schedule_free_eval_params(state, params)
    ({'w': array(1.75, dtype=float32)}, {'w': array(1.5, dtype=float32)})
    """
    caller = "schedule_free"
    check_transform(caller, "base_optimizer", base_optimizer)
    b1 = checks.number(caller, "b1", b1, above=0, most=1)
    weight_lr_power = checks.number(caller, "weight_lr_power", weight_lr_power, least=0)
    if not callable(learning_rate):
        learning_rate = checks.number(caller, "learning_rate", learning_rate, least=0)
    base_update = taking_extra(base_optimizer)
    dtype = state_dtype or mx.float32

    def init(params: Params) -> ScheduleFreeState:
        return ScheduleFreeState(
            b1=mx.array(b1, mx.float32),
            weight_sum=mx.array(0.0),
            step_count=mx.array(1, mx.int32),
            max_lr=mx.array(0.0),
            base_optimizer_state=base_optimizer.init(params),
            z=tree.map(lambda p: p.astype(dtype), params),
        )

    def update(
        updates: Updates, state: ScheduleFreeState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScheduleFreeState]:
        params = required(caller, params)
        if callable(learning_rate):
            rate = value_at(caller, "learning_rate", learning_rate, state.step_count)
        else:
            rate = scalars.float32(learning_rate)
        highest = mx.maximum(state.max_lr, rate)
        weight = mx.power(highest, weight_lr_power)
        weight_sum = state.weight_sum + weight
        share = weight / mx.where(weight_sum > 0, weight_sum, 1.0)  # 0 while every rate has been 0
        taken, base_state = base_update(updates, state.base_optimizer_state, params, **extra)
        taken = moments.float32(taken)
        z = tree.map(lambda a, u: a.astype(mx.float32) + u, state.z, taken)

        def step(y: mx.array, old: mx.array, new: mx.array, u: mx.array) -> mx.array:
            # b1 * (new - x), for x = (y - (1 - b1) * old) / b1
            ahead = b1 * new + (1 - b1) * old.astype(mx.float32) - y.astype(mx.float32)
            return share * ahead + (1 - b1) * u

        updates = tree.map(step, params, state.z, z, taken)
        count, z = scalars.increment(state.step_count), moments.stored(z, dtype)
        return updates, ScheduleFreeState(state.b1, weight_sum, count, highest, base_state, z)

    return checked(caller, init, update, elementwise=True)


def schedule_free_eval_params(state: ScheduleFreeState, params: Params) -> Params:
    """Return the average that `schedule_free` computes: the parameters for evaluation.

    Args:
        state: a state of `schedule_free`.
        params: the trained parameters.

    Raises:
        TypeError: if `state` is not a `ScheduleFreeState`.

    >>> from purestep.transforms import scale
    >>> params = {"w": mx.array(3.0)}
    >>> schedule_free_eval_params(schedule_free(scale(-0.5), 0.5, b1=0.5).init(params), params)
    {'w': array(3, dtype=float32)}
    """
    if not isinstance(state, ScheduleFreeState):
        raise TypeError(
            f"schedule_free_eval_params: state must be a ScheduleFreeState, got a {type(state).__name__}"
        )
    return state.eval_params(params)


def schedule_free_sgd(
    learning_rate: ScalarOrSchedule = 1.0,
    warmup_steps: int | None = None,
    b1: float = 0.9,
    weight_decay: float | mx.array | None = None,
    weight_lr_power: float = 2.0,
    state_dtype: mx.Dtype | None = None,
) -> GradientTransform:
    """Wrap `add_decayed_weights` and `sgd` in `schedule_free` (arXiv:2405.15682).

    Args:
        learning_rate: a number of at least 0; without `warmup_steps` also a 0-d array or a schedule.
        warmup_steps: the number of updates over which the learning rate rises linearly from 0; `None`: it is
            used from the start.
        b1, weight_lr_power, state_dtype: as in `schedule_free`.
        weight_decay: as in `add_decayed_weights`; `None` omits it.

    >>> transform, params = schedule_free_sgd(0.1, b1=0.5), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.2, dtype=float32)}
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
    """Wrap AdamW without momentum in `schedule_free` (arXiv:2405.15682).

    The wrapped optimizer is the chain of `scale_by_rms` with bias correction, `add_decayed_weights` and
    `scale_by_learning_rate`.

    Args:
        learning_rate, warmup_steps: as in `schedule_free_sgd`.
        b1, weight_lr_power, state_dtype: as in `schedule_free`.
        b2: decay of the mean of squares, in [0, 1).
        eps: added outside the root, at least 0.
        weight_decay: at least 0. The decay is decoupled: `learning_rate * weight_decay * y` is subtracted
            from `z`, with `y` the trained parameters.

    >>> transform, params = schedule_free_adamw(0.1), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.1, dtype=float32)}
    """
    rate = _warmed_up(learning_rate, warmup_steps)
    optimizer = chain(
        scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(rate),
    )
    return schedule_free(optimizer, rate, b1, weight_lr_power, state_dtype)


def _warmed_up(learning_rate: ScalarOrSchedule, warmup_steps: int | None) -> ScalarOrSchedule:
    """Return the learning rate, or a schedule that rises linearly to it."""
    if warmup_steps is None:
        return learning_rate
    if callable(learning_rate):
        raise checks.error("schedule_free", "learning_rate must be a number when warmup_steps is given")
    return linear(0.0, learning_rate, warmup_steps)  # pyright: ignore[reportArgumentType]
