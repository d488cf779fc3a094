"""Adafactor: gradients divided by a root mean square that is stored as two vectors for each matrix."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, sums, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.core.scheduled import called
from purestep._transforms.pieces.block import scale_by_param_block_rms
from purestep._transforms.pieces.clipping import clip_by_block_rms
from purestep._transforms.pieces.scaling import scale, scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights

_FLAT = 1e-24  # of a mean square: below it, the derivative of its inverse root is not a float32


class FactoredState(NamedTuple):
    """State of `scale_by_factored_rms`.

    Attributes:
        count: 0-d int32, the number of updates.
        v_row: float32, the running mean of squares, averaged over the largest axis; shape [0] for arrays that
            are not factored.
        v_col: float32, the running mean of squares, averaged over the second largest axis; shape [0] for
            arrays that are not factored.
        v: like params, float32, the running mean of squares; shape [0] for arrays that are factored.
    """

    count: mx.array
    v_row: Tree
    v_col: Tree
    v: Tree


class RunningMeanState(NamedTuple):
    """State of adafactor's momentum.

    Attributes:
        ema: like params, in `dtype_momentum`, the running mean of updates.
    """

    ema: Tree


def decay_rate_pow(step: mx.array, exponent: float) -> mx.array:
    """Return `1 - (step + 1) ** -exponent`: 0 at step 0, so that running means have no bias."""
    return -mx.expm1(-exponent * mx.log(step.astype(mx.float32) + 1))


def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: float = 0.8,
    step_offset: int | mx.array = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: float = 1e-30,
    decay_rate_fn: Callable[[mx.array, float], mx.array] = decay_rate_pow,
) -> GradientTransform:
    """Divide gradients by the root of their running mean square, stored as two vectors for each matrix.

    With `g` the gradient, `count` the number of earlier updates, `s = g ** 2 + epsilon` and
    `b = decay_rate_fn(count - step_offset, decay_rate)`:

        v_row = b * v_row + (1 - b) * mean(s over the largest axis)
        v_col = b * v_col + (1 - b) * mean(s over the second largest)
        update = g / sqrt(v_row * v_col / mean(v_row))

    An array whose second largest axis is shorter than `min_dim_size_to_factor` is not factored:
    `v = b * v + (1 - b) * s`, `update = g / sqrt(v)`.

    Args:
        factored: if false, no array is factored.
        decay_rate: the exponent of `decay_rate_fn`, greater than 0.
        step_offset: the number of updates before the count of `decay_rate_fn` starts to rise from 0.
        min_dim_size_to_factor: the shortest length of an axis to average over, at least 1.
        epsilon: added to squares, greater than 0.
        decay_rate_fn: `(count, decay_rate) -> rate` in [0, 1), for a 0-d count; 0 at count 0.

    Differences from optax:

    1. The state and the updates are float32 for parameters of any dtype. Unused arrays of the state have
       shape [0], not [1].
    2. Before `step_offset`, `decay_rate_fn` receives the count 0. In optax it receives a negative count and
       returns NaN.
    3. The parameters are not needed at update.

    Reference: Shazeer and Stern, Adafactor, arXiv:1804.04235.

    >>> transform = scale_by_factored_rms(min_dim_size_to_factor=2)
    >>> state = transform.init({"w": mx.zeros((2, 3))})
    >>> state.v_row["w"].shape, state.v_col["w"].shape, state.v["w"].shape
    ((2,), (3,), (0,))
    >>> transform.update({"w": mx.full((2, 3), -5.0)}, state)[0]["w"][0]
    array([-1, -1, -1], dtype=float32)
    """
    caller = "scale_by_factored_rms"
    decay_rate = checks.number(caller, "decay_rate", decay_rate, above=0)
    step_offset = checks.number(caller, "step_offset", step_offset)
    min_dim_size_to_factor = checks.integer(caller, "min_dim_size_to_factor", min_dim_size_to_factor, least=1)
    epsilon = checks.number(caller, "epsilon", epsilon, above=0)
    checks.function(caller, "decay_rate_fn", decay_rate_fn)

    def axes(array: mx.array) -> tuple[int, int] | None:
        return _factored_axes(array.shape, min_dim_size_to_factor) if factored else None

    def each_field(fn: Callable[..., mx.array], first: Tree, *rest: FactoredState) -> tuple[Tree, Tree, Tree]:
        """Map `fn(name, leaf, old...)` over the leaves for each of `v_row`, `v_col` and `v`."""
        v_row, v_col, v = (
            tree.map(functools.partial(fn, name), first, *(getattr(state, name) for state in rest))
            for name in FactoredState._fields[1:]
        )
        return v_row, v_col, v

    def init(params: Params) -> FactoredState:
        zeros = each_field(lambda name, p: _zeros(name, p.shape, axes(p)), params)
        return FactoredState(mx.array(0, mx.int32), *zeros)

    def update(
        updates: Updates, state: FactoredState, params: Params | None = None
    ) -> tuple[Updates, FactoredState]:
        step = mx.maximum(state.count - step_offset, 0)
        decay = called(caller, "decay_rate_fn", lambda n: decay_rate_fn(n, decay_rate), step)
        gradients = moments.float32(updates)
        squares = tree.map(lambda g: mx.square(g) + epsilon, gradients)
        means = each_field(lambda name, s, old: _next_mean(name, s, old, axes(s), decay), squares, state)
        updates = tree.map(lambda g, row, col, v: _divided(g, row, col, v, axes(g)), gradients, *means)
        return updates, FactoredState(scalars.increment(state.count), *means)

    return checked(caller, init, update)


def _factored_axes(shape: tuple[int, ...], shortest: int) -> tuple[int, int] | None:
    """Return the second largest and the largest axis; `None` if one is missing or shorter than `shortest`."""
    if len(shape) < 2:
        return None
    second, largest = sorted(range(len(shape)), key=lambda axis: shape[axis])[-2:]
    return (second, largest) if shape[second] >= shortest else None


def _averaged(name: str, axes: tuple[int, int]) -> int | None:
    """Return the axis over which a field of the state averages the squares of an array that is factored."""
    second, largest = axes
    return {"v_row": largest, "v_col": second}.get(name)


def _zeros(name: str, shape: tuple[int, ...], axes: tuple[int, int] | None) -> mx.array:
    """Return the first value of a field of the state for one array; of shape [0] if it is not used."""
    if axes is None:
        return mx.zeros(shape if name == "v" else (0,))
    averaged = _averaged(name, axes)
    return mx.zeros((0,) if averaged is None else shape[:averaged] + shape[averaged + 1 :])


def _next_mean(
    name: str, square: mx.array, old: mx.array, axes: tuple[int, int] | None, decay: mx.array
) -> mx.array:
    """Return the next value of a field of the state for one array."""
    if (axes is None) != (name == "v"):
        return old
    if axes is not None:
        square = sums.mean(square, _averaged(name, axes))
    return decay * old + (1 - decay) * square


def _divided(
    gradient: mx.array, row: mx.array, col: mx.array, whole: mx.array, axes: tuple[int, int] | None
) -> mx.array:
    """Return a gradient divided by its root mean square."""
    flat = functools.partial(scalars.flat_at_zero, below=_FLAT)
    if axes is None:
        return gradient * flat(mx.rsqrt, whole)
    second, largest = axes
    mean = sums.mean(row, second - (second > largest), keepdims=True)
    # Two roots, not one root of the product: the product of two small squares would underflow.
    by_row = mx.expand_dims(flat(mx.rsqrt, flat(lambda mean: row / mean, mean)), largest)
    return gradient * by_row * mx.expand_dims(flat(mx.rsqrt, col), second)


def _running_mean(decay: float, dtype: mx.Dtype) -> GradientTransform:
    (decay,) = moments.decays("adafactor", momentum=decay)

    def update(
        updates: Updates, state: RunningMeanState, params: Params | None = None
    ) -> tuple[Updates, RunningMeanState]:
        ema = moments.mean(moments.float32(updates), state.ema, decay)
        return ema, RunningMeanState(moments.stored(ema, dtype))

    return checked("adafactor", lambda params: RunningMeanState(moments.zeros(params, dtype)), update)


def adafactor(
    learning_rate: ScalarOrSchedule | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    decay_offset: int | mx.array = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | mx.array | None = 1.0,
    momentum: float | None = None,
    dtype_momentum: mx.Dtype = mx.float32,
    weight_decay_rate: float | mx.array | None = None,
    eps: float = 1e-30,
    factored: bool = True,
    weight_decay_mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """Chain `scale_by_factored_rms`, optional members and `scale(-1)` (arXiv:1804.04235).

    The members are, in this order, `scale_by_factored_rms`, `clip_by_block_rms`, `scale_by_learning_rate`,
    `scale_by_param_block_rms`, a running mean, `add_decayed_weights` and `scale(-1)`. A member is omitted if
    its argument is `None` or false.

    The learning rate is used as given, without a bound or a schedule of its own. `weight_decay_rate` is not
    multiplied by it.

    Args:
        learning_rate: as in `scale_by_learning_rate`; `None` is 1. It is relative to the scale of the
            parameters unless `multiply_by_parameter_scale` is false.
        min_dim_size_to_factor, decay_rate, factored: as in `scale_by_factored_rms`.
        decay_offset: `step_offset` of `scale_by_factored_rms`.
        multiply_by_parameter_scale: multiply each step by the root mean square of its parameter.
        clipping_threshold: `threshold` of `clip_by_block_rms`.
        momentum: decay of a running mean of updates, in [0, 1); the bias of the mean is not corrected.
        dtype_momentum: the dtype in which that mean is stored.
        weight_decay_rate, weight_decay_mask: `weight_decay` and `mask` of `add_decayed_weights`.
        eps: `epsilon` of `scale_by_factored_rms`.

    >>> transform, params = adafactor(0.1), {"w": mx.array([2.0, -2.0])}
    >>> transform.update({"w": mx.array([3.0, 0.5])}, transform.init(params), params)[0]
    {'w': array([-0.2, -0.2], dtype=float32)}
    """
    members = [scale_by_factored_rms(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps)]
    if clipping_threshold is not None:
        members.append(clip_by_block_rms(clipping_threshold))
    if learning_rate is not None:
        members.append(scale_by_learning_rate(learning_rate, flip_sign=False))
    if multiply_by_parameter_scale:
        members.append(scale_by_param_block_rms())
    if momentum is not None:
        members.append(_running_mean(momentum, dtype_momentum))
    if weight_decay_rate is not None:
        members.append(add_decayed_weights(weight_decay_rate, weight_decay_mask))
    return chain(*members, scale(-1.0))
