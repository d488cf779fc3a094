"""Gradients of several steps gathered into one update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import GradientTransform, check_transform, checked, taking_extra
from purestep._transforms.core.scheduled import called


class AccumulateState(NamedTuple):
    """State of `accumulate`.

    Attributes:
        mini_step: 0-d int32 in [0, every), gradients gathered since the last update.
        count: 0-d int32, updates made.
        gradients: like params, float32, their sum, each times its weight.
        weight: 0-d float32, the sum of the weights.
        inner: the state of the wrapped transform, which counts updates, not steps.
    """

    mini_step: mx.array
    count: mx.array
    gradients: Tree
    weight: mx.array
    inner: Tree


def accumulate(
    transform: GradientTransform, *, every: int | Callable[[mx.array], mx.array]
) -> GradientTransform:
    """Let the wrapped transform see one gradient for every `every` steps: their mean.

    In between, the updates are zero and the inner state stays as it is. The mean is exact: each
    step's gradient counts by the `weight` of its loss (a `Mean`'s, which `train_step` passes on), so
    steps with different numbers of real tokens give the gradient of all their tokens together.

    A window that the end of the data leaves partial is not lost: its mean is exact too, see `flush`.

    Use it for a batch that spans steps; a batch that is merely too large for the memory is cut by
    `train_step(..., microbatches=k)`, which updates at every step and keeps no gradients in the state.

    Args:
        transform: what receives the mean gradient.
        every: at least 1; or a schedule of it, a function of the count of updates made so far.

    >>> from purestep.transforms import scale
    >>> transform = accumulate(scale(-1.0), every=2)
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for gradient in (1.0, 3.0):
    ...     updates, state = transform.update({"w": mx.array(gradient)}, state)
    ...     print(updates)
    {'w': array(0, dtype=float32)}
    {'w': array(-2, dtype=float32)}
    """
    check_transform("accumulate", "transform", transform)
    if not callable(every):
        every = checks.integer("accumulate", "every", every, least=1)
    inner_update = taking_extra(transform)

    def init(params: Params) -> AccumulateState:
        return AccumulateState(
            mini_step=mx.array(0, mx.int32),
            count=mx.array(0, mx.int32),
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
        flush: mx.array | None = None,
        **extra: Any,
    ) -> tuple[Updates, AccumulateState]:
        weight = scalars.float32(weight)
        summed = tree.map(lambda a, g: a + weight * g.astype(mx.float32), state.gradients, updates)
        total = state.weight + weight
        window = called("accumulate", "every", every, state.count) if callable(every) else every
        full = scalars.increment(state.mini_step) >= window
        if flush is not None:
            full = mx.where(flush, total > 0, full)
            extra["flush"] = flush
        # A flush without weight is no step: it adds nothing, and only ends the window that there is.
        taken = (
            scalars.increment(state.mini_step)
            if flush is None
            else mx.where(flush & (weight == 0), state.mini_step, scalars.increment(state.mini_step))
        )
        scale = mx.where(total > 0, 1 / mx.where(total > 0, total, 1.0), 0.0)
        mean = tree.map(lambda s: scale * s, summed)
        out, inner = inner_update(mean, state.inner, params, weight=total, **extra)
        kept = AccumulateState(
            mini_step=mx.where(full, 0, taken),
            count=scalars.increment(state.count, full.astype(mx.int32)),
            gradients=tree.map(lambda s: mx.where(full, 0.0, s), summed),
            weight=mx.where(full, 0.0, total),
            inner=tree.where(full, inner, state.inner),
        )
        return tree.map(lambda u: mx.where(full, u, mx.zeros_like(u)), out), kept

    return checked("accumulate", init, update)


def flush(transform: GradientTransform, opt_state: Tree, params: Params) -> tuple[Updates, Tree]:
    """Make the update of a window that `accumulate` has not filled, as at the end of the data.

    Args:
        transform: the transform that the step uses, `accumulate` itself or a chain that it ends.
        opt_state: its state.
        params: the parameters.

    Returns:
        Updates to add and the state after them; zero and the same state if the window is empty.

    >>> from purestep.transforms import scale
    >>> transform, params = accumulate(scale(-1.0), every=4), {"w": mx.array(0.0)}
    >>> state = transform.init(params)
    >>> for gradient in (1.0, 3.0):
    ...     _, state = transform.update({"w": mx.array(gradient)}, state, params)
    >>> updates, state = flush(transform, state, params)
    >>> updates, state.mini_step
    ({'w': array(-2, dtype=float32)}, array(0, dtype=int32))
    """
    check_transform("flush", "transform", transform)
    zeros, nothing = tree.zeros_like(params), mx.array(0.0)
    return taking_extra(transform)(
        zeros, opt_state, params, weight=nothing, value=nothing, flush=mx.array(True)
    )


class ApplyEveryState(NamedTuple):
    """State of `apply_every`.

    Attributes:
        count: 0-d int32 in [0, k), updates gathered since the last were let out.
        grad_acc: like params, float32, their sum.
    """

    count: mx.array
    grad_acc: Tree


def apply_every(k: int = 1) -> GradientTransform:
    """Let out the *sum* of the updates every `k` calls, and zeros in between.

    The transforms before it run at every call, and it does not average: placed after the optimizer it
    delays k steps and makes them at once. To train on the mean gradient of several batches use
    `accumulate`.

    Args:
        k: at least 1.

    >>> transform = apply_every(2)
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for _ in range(2):
    ...     updates, state = transform.update({"w": mx.array(3.0)}, state)
    ...     print(updates["w"].item())
    0.0
    6.0
    """
    k = checks.integer("apply_every", "k", k, least=1)

    def init(params: Params) -> ApplyEveryState:
        return ApplyEveryState(mx.array(0, mx.int32), tree.zeros_like(params, mx.float32))

    def update(
        updates: Updates, state: ApplyEveryState, params: Params | None = None
    ) -> tuple[Updates, ApplyEveryState]:
        full = state.count == k - 1
        summed = tree.map(lambda a, u: a + u.astype(mx.float32), state.grad_acc, updates)
        kept = ApplyEveryState(
            count=mx.where(full, 0, scalars.increment(state.count)),
            grad_acc=tree.map(lambda s: mx.where(full, 0.0, s), summed),
        )
        return tree.map(lambda s: mx.where(full, s, 0.0), summed), kept

    return checked("apply_every", init, update)
