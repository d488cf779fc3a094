"""Training of half-precision parameters without losing updates smaller than a rounding step.

A bfloat16 number has 8 significant bits: near 1 the next number is 1/128 away. An update of 1e-4 is lost
when the sum is rounded to the nearest number, and so is every further one. There are two remedies.
`master_weights` keeps float32 copies of the parameters in the state, 4 bytes each. `round_stochastically`
rounds up or down at random, so that the sum is right on average, and needs no memory.
"""

from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import (
    GradientTransform,
    check_transform,
    checked,
    required,
    taking_extra,
)
from purestep._transforms.pieces.noise import as_key, leaf_keys


class RoundStochasticallyState(NamedTuple):
    """State of `round_stochastically`.

    Attributes:
        rng_key: uint32 [2], the key for the draws of the next update.
    """

    rng_key: mx.array


def round_stochastically(key: mx.array | int) -> GradientTransform:
    """Round bfloat16 and float16 parameters up or down at random when updates are added; exact on average.

    Let `a < x < b`, where `x = param + update`, and `a` and `b` are neighbours in the parameter's dtype.
    Then `x` is rounded to `b` with probability `(x - a) / (b - a)`, else to `a`. The returned updates are
    float32, and `param + update` is a number of the parameter's dtype, so `apply_updates` does not round
    again. An update is unchanged if its parameter is float32. A sum that is not finite is not rounded.

    Place it last in a chain: a later transform would undo the rounding.

    Args:
        key: uint32 [2], from `mx.random.key`; or an integer seed. It is stored in the state.

    Raises:
        ValueError: at update, if params is not given.

    Reference: Gupta et al., arXiv:1502.02551; for bfloat16 weights: Zamirai et al., arXiv:2010.06192.

    >>> transform = round_stochastically(0)
    >>> params = {"w": mx.ones(4000, mx.bfloat16)}
    >>> updates = {"w": mx.full(4000, 0.002)}
    >>> rounded, _ = transform.update(updates, transform.init(params), params)
    >>> round(rounded["w"].max().item() * 128), round(rounded["w"].mean().item(), 3)
    (1, 0.002)
    """
    first = as_key("round_stochastically", key)

    def update(
        updates: Updates, state: RoundStochasticallyState, params: Params | None = None
    ) -> tuple[Updates, RoundStochasticallyState]:
        params = required("round_stochastically", params)
        following, now = mx.random.split(state.rng_key)
        keys = leaf_keys(now, updates)

        def rounded(path: str, update: mx.array, param: mx.array) -> mx.array:
            if param.dtype not in _DROPPED_BITS:
                return update
            wide = param.astype(mx.float32)
            return _rounded(wide + update, param.dtype, keys[path]) - wide

        return tree.map_with_path(rounded, updates, params), RoundStochasticallyState(following)

    return checked("round_stochastically", lambda params: RoundStochasticallyState(first), update)


class MasterWeightsState(NamedTuple):
    """State of `master_weights`.

    Attributes:
        params: like params, the float32 copies; of shape [0] for parameters that are float32 themselves.
        inner_state: the state of the wrapped transform.
    """

    params: Tree
    inner_state: Tree


def master_weights(inner: GradientTransform) -> GradientTransform:
    """Update float32 copies of half-precision parameters; the parameters are the copies, rounded.

    `inner` receives the copies as its parameters, also in `init`. The updates set each parameter to its
    copy, rounded to the nearest number of the parameter's dtype. If a parameter is changed by other means,
    the next update overwrites that change.

    Args:
        inner: a complete optimizer.

    Raises:
        ValueError: at update, if params is not given.

    Reference: Micikevicius et al., Mixed precision training, arXiv:1710.03740.

    >>> from purestep import apply_updates
    >>> from purestep.transforms import scale
    >>> transform = master_weights(scale(-1.0))
    >>> params = {"w": mx.array(1.0, mx.bfloat16)}
    >>> state = transform.init(params)
    >>> for _ in range(100):
    ...     updates, state = transform.update({"w": mx.array(1e-3)}, state, params)
    ...     params = apply_updates(params, updates)
    >>> params["w"], round(state.params["w"].item(), 3)
    (array(0.898438, dtype=bfloat16), 0.9)
    """
    check_transform("master_weights", "inner", inner)
    inner_update = taking_extra(inner)

    def init(params: Params) -> MasterWeightsState:
        wide = tree.cast(params, mx.float32)
        kept = tree.map(lambda p: mx.zeros((0,)) if p.dtype == mx.float32 else p.astype(mx.float32), params)
        return MasterWeightsState(kept, inner.init(wide))

    def update(
        updates: Updates, state: MasterWeightsState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MasterWeightsState]:
        params = required("master_weights", params)
        wide = tree.map(lambda p, kept: p if p.dtype == mx.float32 else kept, params, state.params)
        deltas, inner_state = inner_update(updates, state.inner_state, wide, **extra)

        def moved(kept: mx.array, param: mx.array, delta: mx.array) -> mx.array:
            return kept if param.dtype == mx.float32 else kept + delta.astype(mx.float32)

        def leading(param: mx.array, kept: mx.array, delta: mx.array) -> mx.array:
            if param.dtype == mx.float32:
                return delta
            return kept.astype(param.dtype).astype(mx.float32) - param.astype(mx.float32)

        kept = tree.map(moved, state.params, params, deltas)
        return tree.map(leading, params, kept, deltas), MasterWeightsState(kept, inner_state)

    return checked("master_weights", init, update, elementwise=True)


# How many of the 24 significant bits of float32 the dtype does not have.
_DROPPED_BITS = {mx.bfloat16: 16, mx.float16: 13}


def _rounded(value: mx.array, dtype: mx.Dtype, key: mx.array) -> mx.array:
    """Return float32 numbers that are rounded at random to a neighbour in `dtype`."""
    step = 1 << _DROPPED_BITS[dtype]
    draw = mx.random.randint(0, step, value.shape, mx.uint32, key=key)
    # Adding the random bits carries into the last bit that is kept, with a probability equal to the fraction
    # that is cut off.
    bits = (value.view(mx.uint32) + draw) & (0xFFFFFFFF - (step - 1))
    near = bits.view(mx.float32)
    if dtype == mx.float16:  # its numbers below 2 ** -14 have a constant spacing of 2 ** -24
        small = mx.floor(value * 2.0**24 + draw.astype(mx.float32) / step) * 2.0**-24
        near = mx.where(mx.abs(value) < 2.0**-14, small, near)
    return mx.where(mx.isfinite(value), near, value)
