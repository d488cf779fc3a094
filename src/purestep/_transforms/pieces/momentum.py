"""Momentum: a decayed sum of gradients."""

from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import GradientTransform, checked


class TraceState(NamedTuple):
    """State of `trace`.

    Attributes:
        trace: like params, the decayed sum of gradients; float32, or `accumulator_dtype` if given.
    """

    trace: Tree


def trace(
    decay: float, nesterov: bool = False, accumulator_dtype: mx.Dtype | None = None
) -> GradientTransform:
    """Replace gradients by their decayed sum: momentum.

    With `g` the gradient:

        trace = decay * trace + g
        update = g + decay * trace  if nesterov, else trace

    Args:
        decay: in [0, 1]; with 1 the sum is not decayed.
        nesterov: use Nesterov momentum, as in the formula.
        accumulator_dtype: the dtype of the stored sum; `None` is float32.

    Reference: Sutskever et al., On the importance of initialization and momentum in deep learning, 2013.

    >>> transform = trace(0.9)
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for _ in range(2):
    ...     updates, state = transform.update({"w": mx.array(1.0)}, state)
    >>> updates
    {'w': array(1.9, dtype=float32)}
    """
    decay = checks.number("trace", "decay", decay, least=0, most=1)

    def init(params: Params) -> TraceState:
        return TraceState(tree.zeros_like(params, accumulator_dtype or mx.float32))

    def update(
        updates: Updates, state: TraceState, params: Params | None = None
    ) -> tuple[Updates, TraceState]:
        def decayed(g: mx.array, t: mx.array) -> mx.array:
            return decay * t.astype(mx.float32) + g.astype(mx.float32)

        summed = tree.map(decayed, updates, state.trace)
        updates = tree.map(decayed, updates, summed) if nesterov else summed
        if accumulator_dtype is not None:
            summed = tree.map(lambda t: t.astype(accumulator_dtype), summed)
        return updates, TraceState(summed)

    return checked("trace", init, update, elementwise=True)
