"""Adafactor's second moments: two vectors in place of a matrix."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, sums, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.core.scheduled import called
from purestep._transforms.pieces.block import scale_by_param_block_rms
from purestep._transforms.pieces.clipping import clip_by_block_rms
from purestep._transforms.pieces.scaling import scale, scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


class FactoredState(NamedTuple):
    """State of `scale_by_factored_rms`.

    Attributes:
        count: 0-d int32, updates made.
        v_row: float32, the running mean of squares without the largest axis; of shape [0] for arrays
            that are not factored.
        v_col: float32, the same without the second largest axis; of shape [0] for those.
        v: like params, float32, the running mean of squares; of shape [0] for arrays that are factored.
    """

    count: mx.array
    v_row: Tree
    v_col: Tree
    v: Tree


def decay_rate_pow(step: mx.array, exponent: float) -> mx.array:
    """Return `1 - (step + 1) ** -exponent`: 0 at first, so that running means need no correction."""
    return -mx.expm1(-exponent * mx.log(step.astype(mx.float32) + 1))


def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: float = 0.8,
    step_offset: int | mx.array = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: float = 1e-30,
    decay_rate_fn: Callable[[mx.array, float], mx.array] = decay_rate_pow,
) -> GradientTransform:
    """Divide gradients by the root of their running mean square, kept as two vectors for each matrix.

    With `s = g ** 2 + epsilon` and `b = decay_rate_fn(count - step_offset, decay_rate)`:

        v_row = b * v_row + (1 - b) * mean(s over the largest axis)
        v_col = b * v_col + (1 - b) * mean(s over the second largest)
        update = g / sqrt(v_row * v_col / mean(v_row))

    An array whose second largest axis is shorter than `min_dim_size_to_factor` keeps its mean square
    whole: `v = b * v + (1 - b) * s`, `update = g / sqrt(v)`.

    Differences from optax:

    1. Running means and updates are float32 whatever the parameters' dtype; what is not kept has shape
       [0], not [1].
    2. The step within the decay is not taken to be less than 0, where optax's rate is not a number.
    3. The parameters are not needed at update.

    Args:
        factored: false keeps every mean square whole.
        decay_rate: the exponent of `decay_rate_fn`, greater than 0.
        step_offset: updates by which the decay starts later.
        min_dim_size_to_factor: at least 1.
        epsilon: added to squares, greater than 0.
        decay_rate_fn: `(count, decay_rate) -> rate` in [0, 1), of a 0-d array; 0 at count 0.

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

    def axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Return the second largest axis and the largest of an array to factor."""
        if not factored or len(shape) < 2:
            return None
        second, largest = sorted(range(len(shape)), key=lambda axis: shape[axis])[-2:]
        return (second, largest) if shape[second] >= min_dim_size_to_factor else None

    def kept(param: mx.array, which: str) -> mx.array:
        factors = axes(param.shape)
        if factors is None:
            return mx.zeros(param.shape if which == "v" else (0,))
        gone = {"v_row": factors[1], "v_col": factors[0]}.get(which)
        shape = [size for axis, size in enumerate(param.shape) if axis != gone]
        return mx.zeros((0,) if which == "v" else shape)

    def init(params: Params) -> FactoredState:
        v_row, v_col, v = (
            tree.map(lambda p, which=which: kept(p, which), params) for which in FactoredState._fields[1:]
        )
        return FactoredState(mx.array(0, mx.int32), v_row, v_col, v)

    def update(
        updates: Updates, state: FactoredState, params: Params | None = None
    ) -> tuple[Updates, FactoredState]:
        begun = mx.maximum(state.count - step_offset, 0)
        decay = called(caller, "decay_rate_fn", lambda n: decay_rate_fn(n, decay_rate), begun)
        gradients = tree.map(lambda u: u.astype(mx.float32), updates)
        squares = tree.map(lambda g: mx.square(g) + epsilon, gradients)

        def toward(old: mx.array, square: mx.array, which: str) -> mx.array:
            factors = axes(square.shape)
            if (factors is None) != (which == "v"):
                return old
            if factors is not None:
                square = sums.mean(square, factors[1] if which == "v_row" else factors[0])
            return decay * old + (1 - decay) * square

        v_row, v_col, v = (
            tree.map(lambda old, s, which=which: toward(old, s, which), getattr(state, which), squares)
            for which in FactoredState._fields[1:]
        )

        def scaled(g: mx.array, row: mx.array, col: mx.array, full: mx.array) -> mx.array:
            factors = axes(g.shape)
            if factors is None:
                return g * mx.rsqrt(full)
            second, largest = factors
            mean = sums.mean(row, second - (second > largest), keepdims=True)
            # Two roots, not the root of a product: that of two small squares would vanish.
            down = mx.expand_dims(mx.rsqrt(row / mean), largest)
            return g * down * mx.expand_dims(mx.rsqrt(col), second)

        updates = tree.map(scaled, gradients, v_row, v_col, v)
        return updates, FactoredState(scalars.increment(state.count), v_row, v_col, v)

    return checked(caller, init, update)


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
    """Scale by factored mean squares, clip, rate, parameter scale, momentum, decay, then flip the sign.

    `scale_by_factored_rms`, `clip_by_block_rms`, `scale_by_learning_rate`, `scale_by_param_block_rms`, a
    running mean, `add_decayed_weights` and `scale(-1)`; a member whose argument is `None` or false is
    left out. A learning rate that is given is the one that is used: nothing replaces or bounds it.
    `weight_decay_rate` is not multiplied by it. Reference: arXiv:1804.04235.

    Args:
        learning_rate: a number of at least 0, or a schedule; relative to the parameters' scale unless
            `multiply_by_parameter_scale` is false.
        min_dim_size_to_factor: as in `scale_by_factored_rms`: both of the two largest axes have as much.
        decay_rate: the exponent of the decay.
        decay_offset: updates by which the decay starts later.
        multiply_by_parameter_scale: make steps relative.
        clipping_threshold: as in `clip_by_block_rms`.
        momentum: decay of a running mean of updates, in [0, 1), not corrected for its start at zero.
        dtype_momentum: the dtype in which that mean is stored.
        weight_decay_rate: as in `add_decayed_weights`.
        eps: added to squares.
        factored: false keeps whole mean squares.
        weight_decay_mask: which parameters decay.

    >>> transform = adafactor(0.1)
    >>> params = {"w": mx.array([2.0, -2.0])}
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


class RunningMeanState(NamedTuple):
    """State of adafactor's momentum.

    Attributes:
        ema: like params, in `dtype_momentum`, the running mean of updates.
    """

    ema: Tree


def _running_mean(decay: float, dtype: mx.Dtype) -> GradientTransform:
    decay = checks.number("adafactor", "momentum", decay, least=0, below=1)

    def update(
        updates: Updates, state: RunningMeanState, params: Params | None = None
    ) -> tuple[Updates, RunningMeanState]:
        ema = tree.map(
            lambda u, m: decay * m.astype(mx.float32) + (1 - decay) * u.astype(mx.float32), updates, state.ema
        )
        return ema, RunningMeanState(tree.map(lambda m: m.astype(dtype), ema))

    return checked("adafactor", lambda params: RunningMeanState(tree.zeros_like(params, dtype)), update)
