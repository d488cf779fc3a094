"""The incomplete window of `accumulate` at the end of a run."""

import warnings
from typing import Any

import mlx.core as mx

from purestep._core import collective, tree
from purestep._core.packing import Shard
from purestep._loop.core.ranks import group_of_step
from purestep._steps.core.ranks import sharding
from purestep._steps.core.ranks.summing import Chain
from purestep._steps.core.ranks.summing import Ranks as Summing
from purestep._steps.state import TrainState
from purestep._transforms.core.base import GradientTransform, apply_updates
from purestep._transforms.wrappers.accumulation import flush


def flushed(step: Any, state: Any) -> Any:
    """Return the state after the incomplete window of `accumulate`, if it has one, is applied."""
    windows = tree.fields(state.opt_state, "mini_step") if isinstance(state, TrainState) else []
    if not windows:
        return state
    transform = transform_of(step)
    if transform is None:
        if any(int(count.item()) for _, count in windows):
            warnings.warn(
                "fit: the last, incomplete window of accumulate is not applied: step is a function without "
                "the attribute transform; pass the step that train_step made",
                stacklevel=2,
            )
        return state
    group = group_of_step(step)
    if group is not None and _has_parts(state.opt_state):
        return _flushed_in_parts(transform, state, group)
    updates, opt_state = flush(transform, state.opt_state, state.params)
    return state._replace(params=apply_updates(state.params, updates), opt_state=opt_state)


def _flushed_in_parts(
    transform: GradientTransform, state: TrainState, group: mx.distributed.Group
) -> TrainState:
    """Do so with the parts of `sharded`: each rank updates its own, and gathers the parameters."""
    ranks = Summing(group, group.size(), group.rank(), sharded=True)
    chain, own = Chain(ranks, mx.array(0)), sharding.own_part(ranks, state.params)
    with collective.over_parts(chain.sum):
        updates, opt_state = flush(transform, state.opt_state, own)
    params = sharding.gathered(chain, apply_updates(own, updates), state.params)
    mx.eval(params, opt_state)
    return state._replace(params=params, opt_state=opt_state)


def _has_parts(node: Any) -> bool:
    if isinstance(node, Shard):
        return True
    return any(_has_parts(child) for _, child in tree.children(node) or [])


def transform_of(step: Any) -> Any:
    """Return the gradient transform of a step, through wrappers such as `compiled`, or `None`."""
    while step is not None:
        transform = getattr(step, "transform", None)
        if transform is not None:
            return transform
        step = getattr(step, "step", None)
    return None
