"""The loss over a whole batch and its gradient."""

import mlx.core as mx

from purestep._core import norms, tree
from purestep._core.mean import MeanSum
from purestep._core.packing.trees import Packed, packed_like, viewed
from purestep._core.rng import fold_in
from purestep._core.tracing import microbatching
from purestep._core.types import Batch
from purestep._steps.core import merging
from purestep._steps.core.batches import after
from purestep._steps.core.gradients.accumulating import Accumulated, accumulate, merged
from purestep._steps.core.gradients.one import differentiated, weights_of_terms
from purestep._steps.core.objective import Differentiated, Objective, narrowed
from purestep._steps.core.ranks.summing import Chain
from purestep._steps.state import TrainState


def differentiate(
    objective: Objective,
    state: TrainState,
    batch: Batch,
    key: mx.array,
    *,
    check_depends: bool,
    accumulated: Accumulated | None = None,
) -> Differentiated:
    """Return the loss over the whole batch with its outcome and gradient.

    Args:
        objective: the loss function.
        state: the gradient is with respect to its parameters.
        batch: the whole batch.
        key: uint32 [2]; several microbatches receive a key each, made from it.
        check_depends: refuse a loss that depends on no parameter.
        accumulated: the sums over the microbatches, if they have been computed.
    """
    cast, objective = narrowed(objective)
    params = state.params
    if cast is not None:
        state = state._replace(params=cast(params))
    chain, ranks, joined_later = None, objective.ranks, False
    if ranks is not None:
        chain, key = Chain(ranks, state.rng), fold_in(key, ranks.rank)
        joined_later = objective.microbatches == 1 and isinstance(params, Packed)
        if joined_later:  # the gradients are joined, scaled and cast to what is sent by one kernel
            state = state._replace(params=viewed(state.params))
    with microbatching.cut_into(objective.microbatches, 1 if ranks is None else ranks.size):
        if objective.microbatches > 1:
            if accumulated is None:
                accumulated = accumulate(objective, state, batch, key, chain, lambda: check_depends)
            made, weights = merged(objective, accumulated, chain), accumulated.weights
        else:
            made, weights = _alone(objective, state, batch, key, chain, check_depends)
    if cast is not None and not joined_later:  # a part of a vector was cast, leaf by leaf
        made = made._replace(gradients=packed_like(objective.caller, made.gradients, params))
    if chain is not None:
        return merging.over_ranks(objective, chain, made, weights, params)
    if cast is None or objective.microbatches > 1:  # the gradients of microbatches are sums in float32
        return made
    found = made.gradients
    wide = tree.map(lambda gradient, param: gradient.astype(param.dtype), found, params)
    norms.same(wide, found)
    return made._replace(gradients=wide, narrow=found)


def _alone(
    objective: Objective,
    state: TrainState,
    batch: Batch,
    key: mx.array,
    chain: Chain | None,
    check_depends: bool,
) -> tuple[Differentiated, list[mx.array] | None]:
    """Differentiate the loss of a batch that is not cut; like `merged` otherwise."""
    inputs = state.params, state.model_state, batch, key
    made = differentiated(objective, *inputs, check_depends=check_depends)
    if chain is None or not isinstance(made.outcome.loss, MeanSum):
        return made, None
    weights = weights_of_terms(objective, state, batch, [key], chain)
    # On the same arrays, mx.compile would fail if the loss function used mx.split on the batch.
    again = state.params, state.model_state, after(batch, weights), key
    return differentiated(objective, *again, weights, check_depends=check_depends), weights
