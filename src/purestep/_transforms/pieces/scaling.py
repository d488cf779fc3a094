"""Multiplication of updates by a number, by the learning rate in the state, or by a schedule."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Updates
from purestep._transforms.core.base import GradientTransform, checked, without_state
from purestep._transforms.core.scheduled import value_at


def scale(step_size: float | mx.array) -> GradientTransform:
    """Multiply every update by `step_size`; dtypes are unchanged.

    >>> scale(0.5).update({"w": mx.array(3.0)}, ())
    ({'w': array(1.5, dtype=float32)}, ())
    """
    step_size = checks.number("scale", "step_size", step_size)
    return without_state(
        "scale",
        lambda updates, params: tree.map(lambda u: (step_size * u).astype(u.dtype), updates),
        elementwise=True,
    )


class ScaleByLearningRateState(NamedTuple):
    """State of `scale_by_learning_rate`.

    Attributes:
        count: 0-d int32, the number of updates made.
        learning_rate: 0-d float32, the rate of the last update; after `init`, that of the first.
    """

    count: mx.array
    learning_rate: mx.array


class ScheduledLearningRateState(ScaleByLearningRateState):
    """State of `scale_by_learning_rate` with a schedule. It has the same fields, but the rate is read-only.

    `set_hyperparameters` refuses to change the rate, since the schedule would overwrite it.
    """

    scheduled = True


def scale_by_learning_rate(learning_rate: ScalarOrSchedule, *, flip_sign: bool = True) -> GradientTransform:
    """Multiply updates by minus the learning rate, so that adding them decreases the loss.

    The rate is an array in the state. A constant rate is read from the state, so a new value written there
    takes effect without a retrace. A schedule is evaluated with the number of earlier updates as its count,
    and its value is stored in the state for the metrics.

    Args:
        learning_rate: a finite number of at least 0, a 0-d array, or a schedule.
        flip_sign: multiply by minus the rate; if false, by the rate itself.

    >>> transform = scale_by_learning_rate(0.1)
    >>> updates, state = transform.update({"w": mx.array(3.0)}, transform.init({"w": mx.array(0.0)}))
    >>> updates["w"], state.learning_rate
    (array(-0.3, dtype=float32), array(0.1, dtype=float32))
    """
    scheduled = callable(learning_rate)
    if not scheduled:
        learning_rate = checks.number("scale_by_learning_rate", "learning_rate", learning_rate, least=0)
    sign = -1 if flip_sign else 1
    state_type = ScheduledLearningRateState if scheduled else ScaleByLearningRateState

    def rate_at(count: mx.array) -> mx.array:
        if callable(learning_rate):
            return value_at("scale_by_learning_rate", "learning_rate", learning_rate, count)
        return scalars.float32(learning_rate)

    def init(params: Params) -> ScaleByLearningRateState:
        count = mx.array(0, mx.int32)
        return state_type(count, rate_at(count))

    def update(
        updates: Updates, state: ScaleByLearningRateState, params: Params | None = None
    ) -> tuple[Updates, ScaleByLearningRateState]:
        rate = rate_at(state.count) if scheduled else state.learning_rate
        factor = sign * rate
        updates = tree.map(lambda u: (scalars.beside(factor, u) * u).astype(u.dtype), updates)
        return updates, state_type(scalars.increment(state.count), rate)

    return checked("scale_by_learning_rate", init, update, elementwise=True)


class ScaleByScheduleState(NamedTuple):
    """State of `scale_by_schedule`.

    Attributes:
        count: 0-d int32, the number of updates made.
    """

    count: mx.array


def scale_by_schedule(step_size_fn: Callable[[mx.array], mx.array | float]) -> GradientTransform:
    """Multiply updates by a schedule.

    The factor is used as it is: a step downhill needs a negative one. Dtypes are unchanged.

    Args:
        step_size_fn: `count -> factor`, with `count` the number of earlier updates, 0-d int32.

    >>> from purestep.schedules import linear
    >>> transform = scale_by_schedule(linear(1.0, 0.0, 4))
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for _ in range(2):
    ...     updates, state = transform.update({"w": mx.array(2.0)}, state)
    >>> updates
    {'w': array(1.5, dtype=float32)}
    """
    checks.function("scale_by_schedule", "step_size_fn", step_size_fn)

    def update(
        updates: Updates, state: ScaleByScheduleState, params: Params | None = None
    ) -> tuple[Updates, ScaleByScheduleState]:
        factor = value_at("scale_by_schedule", "step_size_fn", step_size_fn, state.count)
        return tree.map(lambda u: (factor * u).astype(u.dtype), updates), ScaleByScheduleState(
            scalars.increment(state.count)
        )

    return checked(
        "scale_by_schedule",
        lambda params: ScaleByScheduleState(mx.array(0, mx.int32)),
        update,
        elementwise=True,
    )
