"""Gradient accumulation: one update from the gradients of several steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import GradientTransform, check_transform, checked, taking_extra
from purestep._transforms.core.scheduled import called
from purestep._transforms.wrappers.conditional import zero_unless


class AccumulateState(NamedTuple):
    """State of `accumulate`.

    Attributes:
        mini_step: 0-d int32 in [0, every), the number of gradients in the current window.
        count: 0-d int32, the number of updates made.
        gradients: like params, float32, the sum of gradient times weight over the window.
        weight: 0-d float32, the sum of the weights over the window.
        inner: the state of the wrapped transform, which counts updates, not steps.
    """

    mini_step: mx.array
    count: mx.array
    gradients: Tree
    weight: mx.array
    inner: Tree


def accumulate(
    transform: GradientTransform, *, every: int | Callable[[mx.array], mx.array | int]
) -> GradientTransform:
    """Apply the wrapped transform once every `every` steps, to the mean of their gradients.

    At the other steps the updates are zero and the inner state is unchanged. The mean is exact: gradients are
    weighted by `weight`, the weight of the loss, which `train_step` passes to transforms. So steps with
    different numbers of real tokens give the gradient over all their tokens. Without `weight`, every gradient
    has weight 1.

    `flush` applies a window that is still incomplete at the end of the data. Its mean is exact too.

    Use `accumulate` for a batch that spans several steps. If the batch of one step does not fit in memory,
    use `train_step(..., microbatches=k)`: it updates at every step and keeps no gradients in the state.

    Args:
        transform: receives the mean gradient.
        every: the number of steps in a window, at least 1; or a function of the number of updates made so far
            (0-d int32) that returns it.

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

    def steps_in_window(count: mx.array) -> int | mx.array:
        return called("accumulate", "every", every, count) if callable(every) else every

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
        total = state.weight + weight
        summed = tree.map(lambda a, g: a + weight * g.astype(mx.float32), state.gradients, updates)
        taken = scalars.increment(state.mini_step)
        full = taken >= steps_in_window(state.count)
        if flush is not None:
            extra["flush"] = flush
            full = mx.where(flush, total > 0, full)
            # A flush with zero weight adds no gradient: it only closes the current window.
            taken = mx.where(flush & (weight == 0), state.mini_step, taken)
        out, inner = inner_update(_mean(summed, total), state.inner, params, weight=total, **extra)
        kept = AccumulateState(
            mini_step=mx.where(full, 0, taken),
            count=scalars.increment(state.count, full.astype(mx.int32)),
            gradients=tree.map(lambda s: mx.where(full, 0.0, s), summed),
            weight=mx.where(full, 0.0, total),
            inner=tree.where(full, inner, state.inner),
        )
        return zero_unless(full, out), kept

    return checked("accumulate", init, update, elementwise=True)


def flush(transform: GradientTransform, opt_state: Tree, params: Params) -> tuple[Updates, Tree]:
    """Apply the incomplete window of `accumulate`, for example at the end of the data.

    Args:
        transform: the transform that the step uses: `accumulate(...)`, or a chain that contains it.
        opt_state: its state.
        params: the parameters.

    Returns:
        The updates to add and the next state. If the window is empty, the updates are zero and the state
        is unchanged.

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


def _mean(summed: Tree, total: mx.array) -> Tree:
    """Return the weighted mean of the gradients; zeros if their total weight is 0."""
    scale = mx.where(total > 0, 1 / mx.where(total > 0, total, 1.0), 0.0)
    return tree.map(lambda s: scale * s, summed)


class ApplyEveryState(NamedTuple):
    """State of `apply_every`.

    Attributes:
        count: 0-d int32 in [0, k), the number of updates in the sum.
        grad_acc: like params, float32, the sum of updates.
    """

    count: mx.array
    grad_acc: Tree


def apply_every(k: int = 1) -> GradientTransform:
    """Return the *sum* of the last `k` updates at every `k`-th call, and zeros at the other calls.

    The transforms before it run at every call, and the sum is not averaged. Placed after an optimizer, it
    holds back `k` steps and then applies their sum. To train on the mean gradient of several batches, use
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

    return checked("apply_every", init, update, elementwise=True)
