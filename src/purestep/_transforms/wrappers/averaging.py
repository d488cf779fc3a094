"""Running averages: of updates, and of parameters for evaluation."""

from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core.base import (
    GradientTransform,
    check_transform,
    checked,
    required,
    taking_extra,
)
from purestep._transforms.core.moments import bias_correction
from purestep._transforms.core.scheduled import value_at
from purestep._transforms.inspection.evaluation import where_held


class EmaState(NamedTuple):
    """State of `ema`.

    Attributes:
        count: 0-d int32, the number of updates made.
        ema: like params, the running mean, not debiased; float32, or `accumulator_dtype` if given.
    """

    count: mx.array
    ema: Tree


def ema(decay: float, debias: bool = True, accumulator_dtype: mx.Dtype | None = None) -> GradientTransform:
    """Replace updates by their exponential moving average (EMA).

    With `u` the update and `t` its number, from 1:

        ema = decay * ema + (1 - decay) * u
        update = ema / (1 - decay ** t)  if debias, else ema

    It averages *updates*. For an average of the parameters, see `averaged`.

    Args:
        decay: in [0, 1).
        debias: correct the bias of the mean, which starts at zero.
        accumulator_dtype: the dtype of the stored mean; `None` is float32.

    >>> transform = ema(0.9)
    >>> transform.update({"w": mx.array(3.0)}, transform.init({"w": mx.array(0.0)}))[0]
    {'w': array(3, dtype=float32)}
    """
    decay = checks.number("ema", "decay", decay, least=0, below=1)

    def init(params: Params) -> EmaState:
        return EmaState(mx.array(0, mx.int32), tree.zeros_like(params, accumulator_dtype or mx.float32))

    def update(updates: Updates, state: EmaState, params: Params | None = None) -> tuple[Updates, EmaState]:
        def decayed(u: mx.array, m: mx.array) -> mx.array:
            return decay * m.astype(mx.float32) + (1 - decay) * u.astype(mx.float32)

        count = scalars.increment(state.count)
        mean = tree.map(decayed, updates, state.ema)
        out = mean
        if debias:
            scale = 1 / bias_correction(decay, count)
            out = tree.map(lambda m: scale * m, mean)
        if accumulator_dtype is not None:
            mean = tree.map(lambda m: m.astype(accumulator_dtype), mean)
        return out, EmaState(count, mean)

    return checked("ema", init, update, elementwise=True)


class AveragedState(NamedTuple):
    """State of `averaged`.

    Attributes:
        count: 0-d int32, the number of updates made.
        average: like params, float32, the average of the parameters.
        inner: the state of the wrapped transform.
    """

    count: mx.array
    average: Tree
    inner: Tree

    def eval_params(self, params: Params) -> Params:
        """Return the average, in the parameters' dtypes."""
        return where_held(lambda average, param: average.astype(param.dtype), self.average, params)


def averaged(
    inner: GradientTransform, decay: ScalarOrSchedule | None = 0.999, *, start: int = 0
) -> GradientTransform:
    """Keep a float32 average of the parameters for evaluation; the updates are those of `inner`.

    Let `p` be the parameters after update `t`, counted from 1:

        average = decay * average + (1 - decay) * p      exponential, starting at the initial parameters
        average = average + (p - average) / (t - start)  decay=None: the arithmetic mean (Polyak)

    No later transform may change the updates: wrap the whole chain in `averaged`. Put `accumulate` and
    `skip_nonfinite` around `averaged`, not inside it.

    Args:
        inner: the transform that trains the parameters.
        decay: in [0, 1]; or a schedule of the number of earlier updates; or `None` for the arithmetic mean.
        start: during this many first updates the average equals the parameters.

    Reference: Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992;
    Izmailov et al., arXiv:1803.05407.

    >>> from purestep import eval_params
    >>> from purestep.transforms import scale
    >>> transform = averaged(scale(-1.0), decay=None)
    >>> params = {"w": mx.array(0.0)}
    >>> state = transform.init(params)
    >>> for gradient in (-1.0, -2.0):
    ...     updates, state = transform.update({"w": mx.array(gradient)}, state, params)
    ...     params = tree.map(mx.add, params, updates)
    >>> params, eval_params(state, params)
    ({'w': array(3, dtype=float32)}, {'w': array(2, dtype=float32)})
    """
    caller = "averaged"
    check_transform(caller, "inner", inner)
    if not callable(decay) and decay is not None:
        decay = checks.number(caller, "decay", decay, least=0, most=1)
    start = checks.integer(caller, "start", start, least=0)
    inner_update = taking_extra(inner)

    def rate_at(count: mx.array) -> mx.array:
        since = (count - start).astype(mx.float32)
        if decay is None:
            return 1 / mx.maximum(since + 1, 1)
        rate = 1 - (value_at(caller, "decay", decay, count) if callable(decay) else scalars.float32(decay))
        return mx.where(since < 0, 1.0, rate) if start else rate

    def init(params: Params) -> AveragedState:
        return AveragedState(mx.array(0, mx.int32), tree.cast(params, mx.float32), inner.init(params))

    def update(
        updates: Updates, state: AveragedState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, AveragedState]:
        params = required(caller, params)
        updates, inner_state = inner_update(updates, state.inner, params, **extra)
        rate = rate_at(state.count)

        def join(average: mx.array, param: mx.array, update: mx.array) -> mx.array:
            new = (param + update).astype(param.dtype)  # as in apply_updates
            return average + rate * (new.astype(mx.float32) - average)

        average = tree.map(join, state.average, params, updates)
        return updates, AveragedState(scalars.increment(state.count), average, inner_state)

    return checked(caller, init, update, elementwise=True)
