"""Smaller updates after the loss has stopped falling."""

from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, Updates
from purestep._transforms.core.base import GradientTransform, checked


class ReduceLROnPlateauState(NamedTuple):
    """State of `reduce_on_plateau`.

    Attributes:
        scale: 0-d float32, the factor of the updates.
        best_value: 0-d float32, the best mean so far.
        plateau_count: 0-d int32, the number of means in a row that were not better.
        cooldown_count: 0-d int32, the number of means left in the cooldown.
        count: 0-d int32 in [0, accumulation_size), the number of values in the current mean.
        avg_value: 0-d float32, the current mean.
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
    """Multiply updates by a scale, and multiply the scale by `factor` when the loss has stopped falling.

    Place it after `scale_by_learning_rate`, or after any other transform that normalizes. `update` receives
    the loss as `value=` from `train_step`. Values are averaged over `accumulation_size` updates. A mean is
    better if it is below `(1 - rtol) * best - atol`; NaN is not better.

    Differences from optax:

    1. All floats of the state are float32. In optax they have the parameters' dtype.

    Differences from torch:

    1. ReduceLROnPlateau waits for one mean more: its `patience=9` is `patience=10` here and in optax.

    Args:
        factor: in (0, 1).
        patience: the scale is reduced after this many means in a row that are not better; at least 1.
        rtol: in [0, 1].
        atol: at least 0; `rtol` and `atol` must not both be 0.
        cooldown: the number of means after a reduction that do not count towards `patience`.
        accumulation_size: the number of values in one mean, at least 1; use more if the values are noisy.
        min_scale: the lower bound of the scale.

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

    def after(state: ReduceLROnPlateauState, mean: mx.array) -> ReduceLROnPlateauState:
        """Return the state after the mean of `accumulation_size` values."""
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
        new = tree.where(count == accumulation_size, after(state, mean), gathered)
        return tree.map(lambda u: (new.scale * u).astype(u.dtype), updates), new

    return checked(caller, init, update, elementwise=True)
