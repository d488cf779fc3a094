"""The update of the parameters from their gradients."""

from typing import NamedTuple

import mlx.core as mx

from purestep._core import collective
from purestep._core.rng import fold_in, scope
from purestep._core.types import Params, Tree, Update, Updates
from purestep._steps.core.objective import Differentiated
from purestep._steps.core.outcome import own
from purestep._steps.core.ranks import sharding
from purestep._steps.core.ranks.summing import Chain
from purestep._steps.state import TrainState
from purestep._transforms.core.base import apply_updates

# Folded into a key for the draws of the transform: others than those of the loss.
_UPDATE = mx.array(0x7570, mx.uint32)


class Updated(NamedTuple):
    """The results of an update.

    Attributes:
        grad_norm: the norm of the gradients, 0-d.
        updates: what the transform returned, or the part of this rank.
        params: the new parameters.
        opt_state: the new optimizer state.
    """

    grad_norm: mx.array
    updates: Updates
    params: Params
    opt_state: Tree


def updated(update: Update, state: TrainState, made: Differentiated, key: mx.array) -> Updated:
    """Return the new parameters and optimizer state.

    Args:
        update: the transform's.
        state: the state before the step.
        made: the gradients, with everything that the transform may receive.
        key: the key of the step.
    """
    if made.chain is not None and made.chain.ranks.sharded:
        return _updated_in_parts(update, state, made, made.chain, key)
    grad_norm = made.norm
    updates, opt_state = _transformed(update, state, made, grad_norm, key)
    return Updated(grad_norm, updates, apply_updates(state.params, updates), opt_state)


def _updated_in_parts(
    update: Update, state: TrainState, made: Differentiated, chain: Chain, key: mx.array
) -> Updated:
    """Update the part of the parameters that this rank holds, and gather the parts of all ranks."""
    own_part = sharding.own_part(chain.ranks, state.params)
    with collective.over_parts(chain.sum):
        grad_norm = made.norm
        draws = fold_in(key, chain.ranks.rank)  # others than for the same place of another part
        given = state._replace(params=own_part)
        updates, opt_state = _transformed(update, given, made, grad_norm, draws)
    params = sharding.gathered(chain, apply_updates(own_part, updates), state.params)
    return Updated(grad_norm, updates, params, opt_state)


def _transformed(
    update: Update, state: TrainState, made: Differentiated, grad_norm: mx.array, key: mx.array
) -> tuple[Updates, Tree]:
    """Return the updates and the new optimizer state.

    The transform receives its own containers and handles: writing into them changes nothing outside. Random
    numbers that it draws without a key are a function of `key`. Its updates are its `gradients`, so that a
    clip by the global norm uses the norm that the step has computed.
    """
    gradients, opt_state, params = own((made.gradients, state.opt_state, state.params))
    with scope(fold_in(key, _UPDATE)):
        return update(
            gradients,
            opt_state,
            params,
            value=made.value.__copy__(),
            weight=made.outcome.loss.weight.__copy__(),
            gradients=gradients,
            grad_norm=grad_norm.__copy__(),
        )
