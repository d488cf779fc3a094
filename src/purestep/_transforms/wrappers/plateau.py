"""Smaller updates once the loss no longer falls."""

from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, Updates
from purestep._transforms.core.base import GradientTransform, checked


class ReduceLROnPlateauState(NamedTuple):
    """State of `reduce_on_plateau`.

    Attributes:
        scale: 0-d float32, what updates are multiplied by.
        best_value: 0-d float32, the least mean value seen.
        plateau_count: 0-d int32, means in a row that were no better.
        cooldown_count: 0-d int32, means left to wait through.
        count: 0-d int32 in [0, accumulation_size), values in the present mean.
        avg_value: 0-d float32, the present mean.
    """

    scale: mx.array
    best_value: mx.array
    plateau_count: mx.array
    cooldown_count: mx.array
    count: mx.array
    avg_value: mx.array


def reduce_on_plateau(
    factor: float = 0.1,
    patience: int = 10,
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
    min_scale: float = 0.0,
) -> GradientTransform:
    """Multiply updates by a scale, and the scale by `factor` whenever `value` has stopped falling.

    Place it after `scale_by_learning_rate` or anywhere behind what normalizes. The update's `value=` is
    the loss, which `train_step` hands on; it is averaged over `accumulation_size` updates, and a mean
    is better if it is below `(1 - rtol) * best - atol`. A value that is NaN is not better.

    Differences from optax:

    1. All floats of the state are float32; there they have the parameters' dtype.

    `patience` is optax's. PyTorch's ReduceLROnPlateau waits for one mean more: its `patience=9` is 10 here.

    Args:
        factor: in (0, 1).
        patience: means in a row, no better than the best, after which the scale falls; at least 1.
        rtol: in [0, 1].
        atol: at least 0; not both tolerances may be 0.
        cooldown: means to wait after the scale fell before counting again.
        accumulation_size: updates to a mean, at least 1; make it large when the values are noisy.
        min_scale: the scale stays at or above it.

    >>> transform = reduce_on_plateau(factor=0.5, patience=2)
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for value in (3.0, 2.0, 2.0, 2.0):
    ...     updates, state = transform.update({"w": mx.array(1.0)}, state, value=mx.array(value))
    ...     print(updates["w"].item())
    1.0
    1.0
    1.0
    0.5
    """
    caller = "reduce_on_plateau"
    factor = checks.number(caller, "factor", factor, above=0, below=1)
    patience = checks.integer(caller, "patience", patience, least=1)
    rtol = checks.number(caller, "rtol", rtol, least=0, most=1)
    atol = checks.number(caller, "atol", atol, least=0)
    if rtol == 0 and atol == 0:
        raise checks.error(caller, "rtol or atol must be greater than 0, got 0 for both")
    cooldown = checks.integer(caller, "cooldown", cooldown, least=0)
    accumulation_size = checks.integer(caller, "accumulation_size", accumulation_size, least=1)
    min_scale = checks.number(caller, "min_scale", min_scale, least=0)

    def init(params: Params) -> ReduceLROnPlateauState:
        zero = mx.array(0, mx.int32)
        return ReduceLROnPlateauState(mx.array(1.0), mx.array(mx.inf), zero, zero, zero, mx.array(0.0))

    def judged(state: ReduceLROnPlateauState, mean: mx.array) -> ReduceLROnPlateauState:
        """Return the state after a full mean."""
        better = mean < (1 - rtol) * state.best_value - atol
        waiting = state.cooldown_count > 0
        worse = mx.where(better, 0, scalars.increment(state.plateau_count))
        fall = ~waiting & (worse == patience)
        lower = mx.maximum(mx.where(fall, factor * state.scale, state.scale), min_scale)
        return ReduceLROnPlateauState(
            scale=mx.where(waiting, state.scale, lower),
            best_value=mx.where(better, mean, state.best_value),
            plateau_count=mx.where(waiting | fall, 0, worse),
            cooldown_count=mx.where(waiting, state.cooldown_count - 1, mx.where(fall, cooldown, 0)),
            count=mx.array(0, mx.int32),
            avg_value=mx.array(0.0),
        )

    def update(
        updates: Updates,
        state: ReduceLROnPlateauState,
        params: Params | None = None,
        *,
        value: float | mx.array | None = None,
    ) -> tuple[Updates, ReduceLROnPlateauState]:
        if value is None:
            raise checks.error(caller, "value is needed: call update(updates, state, params, value=loss)")
        count = scalars.increment(state.count)
        mean = (state.count * state.avg_value + scalars.float32(value)) / count
        gathered = state._replace(count=count, avg_value=mean)
        new = tree.where(count == accumulation_size, judged(state, mean), gathered)
        return tree.map(lambda u: (new.scale * u).astype(u.dtype), updates), new

    return checked(caller, init, update)
