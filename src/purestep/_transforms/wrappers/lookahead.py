"""Lookahead: slow parameters that follow the fast ones."""

from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import (
    GradientTransform,
    check_transform,
    checked,
    required,
    taking_extra,
)
from purestep._transforms.inspection.evaluation import where_held


class LookaheadState(NamedTuple):
    """State of `lookahead`.

    Attributes:
        fast_state: the state of the fast optimizer.
        steps_since_sync: 0-d int32 in [0, sync_period).
        slow: like params, float32, the slow parameters.
    """

    fast_state: Tree
    steps_since_sync: mx.array
    slow: Tree

    def eval_params(self, params: Params) -> Params:
        """Return the slow parameters, in the parameters' dtypes."""
        return where_held(lambda slow, param: slow.astype(param.dtype), self.slow, params)


def lookahead(
    fast_optimizer: GradientTransform, sync_period: int, slow_step_size: float, reset_state: bool = False
) -> GradientTransform:
    """Every few updates, move slow parameters towards the fast ones, then set the fast ones to the slow ones.

        every sync_period updates:  slow = slow + slow_step_size * (fast - slow);  fast = slow

    Differences from optax:

    1. The slow parameters are float32 arrays in the state, and `eval_params` returns them. The parameters
       are a plain tree; there is no `LookaheadParams`.

    Args:
        fast_optimizer: trains the fast parameters; no later transform may change its updates.
        sync_period: the number of updates from one synchronization to the next, at least 1.
        slow_step_size: in [0, 1].
        reset_state: initialize the fast optimizer's state again at each synchronization.

    Reference: Zhang et al., arXiv:1907.08610.

    >>> from purestep.transforms import scale
    >>> transform = lookahead(scale(-1.0), sync_period=2, slow_step_size=0.5)
    >>> params = {"w": mx.array(0.0)}
    >>> state = transform.init(params)
    >>> for _ in range(2):
    ...     updates, state = transform.update({"w": mx.array(-3.0)}, state, params)
    ...     params = tree.map(mx.add, params, updates)
    ...     print(params["w"].item())
    3.0
    3.0
    """
    caller = "lookahead"
    check_transform(caller, "fast_optimizer", fast_optimizer)
    sync_period = checks.integer(caller, "sync_period", sync_period, least=1)
    slow_step_size = checks.number(caller, "slow_step_size", slow_step_size, least=0, most=1)
    fast_update = taking_extra(fast_optimizer)

    def init(params: Params) -> LookaheadState:
        return LookaheadState(
            fast_state=fast_optimizer.init(params),
            steps_since_sync=mx.array(0, mx.int32),
            slow=tree.cast(params, mx.float32),
        )

    def update(
        updates: Updates, state: LookaheadState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, LookaheadState]:
        params = required(caller, params)
        updates, fast_state = fast_update(updates, state.fast_state, params, **extra)
        sync = state.steps_since_sync == sync_period - 1

        def follow(slow: mx.array, param: mx.array, update: mx.array) -> mx.array:
            ahead = param.astype(mx.float32) + update - slow
            return mx.where(sync, slow + slow_step_size * ahead, slow)

        slow = tree.map(follow, state.slow, params, updates)
        updates = tree.map(
            lambda u, s, p: mx.where(sync, s - p.astype(mx.float32), u.astype(mx.float32)),
            updates,
            slow,
            params,
        )
        if reset_state:
            fast_state = tree.where(sync, fast_optimizer.init(params), fast_state)
        steps = mx.where(sync, 0, scalars.increment(state.steps_since_sync))
        return updates, LookaheadState(fast_state, steps, slow)

    return checked(caller, init, update, elementwise=True)
