"""Updates gathered and let out together."""

from typing import NamedTuple

import mlx.core as mx

from purestep import checks, scalars, tree
from purestep.transforms.base import GradientTransform, checked
from purestep.types import Params, Tree, Updates


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
