"""Gradients of several steps gathered into one update."""

from typing import Any, NamedTuple

import mlx.core as mx

from purestep import checks, scalars, tree
from purestep.transforms.base import GradientTransform, check_transform, taking_extra
from purestep.types import Params, Tree, Updates


class AccumulateState(NamedTuple):
    """State of `accumulate`.

    Attributes:
        mini_step: 0-d int32 in [0, every), gradients gathered since the last update.
        gradients: like params, float32, their sum, each times its weight.
        weight: 0-d float32, the sum of the weights.
        inner: the state of the wrapped transform, which counts updates, not steps.
    """

    mini_step: mx.array
    gradients: Tree
    weight: mx.array
    inner: Tree


def accumulate(transform: GradientTransform, *, every: int) -> GradientTransform:
    """Let the wrapped transform see one gradient for every `every` steps: their mean.

    In between, the updates are zero and the inner state stays as it is. The mean is exact: each
    step's gradient counts by the `weight` of its loss (a `Mean`'s, which `train_step` passes on), so
    steps with different numbers of real tokens give the gradient of all their tokens together.

    Use it for a batch that spans steps; a batch that is merely too large for the memory is cut by
    `train_step(..., microbatches=k)`, which updates at every step and keeps no gradients in the state.

    Args:
        transform: what receives the mean gradient.
        every: at least 1.

    >>> from purestep.transforms.scaling import scale
    >>> transform = accumulate(scale(-1.0), every=2)
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for gradient in (1.0, 3.0):
    ...     updates, state = transform.update({"w": mx.array(gradient)}, state)
    ...     print(updates)
    {'w': array(0, dtype=float32)}
    {'w': array(-2, dtype=float32)}
    """
    check_transform("accumulate", "transform", transform)
    checks.integer("accumulate", "every", every, least=1)
    inner_update = taking_extra(transform)

    def init(params: Params) -> AccumulateState:
        return AccumulateState(
            mini_step=mx.array(0, mx.int32),
            gradients=tree.zeros_like(params, mx.float32),
            weight=mx.array(0.0),
            inner=transform.init(params),
        )

    def update(
        updates: Updates,
        state: AccumulateState,
        params: Params | None = None,
        *,
        weight: mx.array | float = 1.0,
        **extra: Any,
    ) -> tuple[Updates, AccumulateState]:
        weight = scalars.float32(weight)
        summed = tree.map(lambda a, g: a + weight * g.astype(mx.float32), state.gradients, updates)
        total = state.weight + weight
        full = state.mini_step == every - 1
        scale = mx.where(total > 0, 1 / mx.where(total > 0, total, 1.0), 0.0)
        mean = tree.map(lambda s: scale * s, summed)
        out, inner = inner_update(mean, state.inner, params, weight=total, **extra)
        kept = AccumulateState(
            mini_step=mx.where(full, 0, state.mini_step + 1),
            gradients=tree.map(lambda s: mx.where(full, 0.0, s), summed),
            weight=mx.where(full, 0.0, total),
            inner=tree.where(full, inner, state.inner),
        )
        return tree.map(lambda u: mx.where(full, u, mx.zeros_like(u)), out), kept

    return GradientTransform(init, update)
