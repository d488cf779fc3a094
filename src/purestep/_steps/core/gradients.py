"""The loss over a whole batch and its gradient, computed from microbatches in turn."""

import mlx.core as mx

from purestep._core import checks, cuda, norms, sums, tree
from purestep._core.mean import AnyMean, Mean, MeanSum
from purestep._core.packing.trees import Packed, packed_like, viewed
from purestep._core.rng import fold_in
from purestep._core.tracing import graph, microbatching
from purestep._core.tracing.ordering import before_gradient
from purestep._core.types import Batch, Params, Tree, Updates
from purestep._layers import observing
from purestep._layers.observing import Observed
from purestep._steps.core import measuring, merging
from purestep._steps.core.batches import after, microbatch
from purestep._steps.core.objective import Differentiated, Narrowed, Objective
from purestep._steps.core.outcome import Outcome, no_backward_draws, own
from purestep._steps.core.summing import Chain
from purestep._steps.state import TrainState


def differentiate(
    objective: Objective, state: TrainState, batch: Batch, key: mx.array, *, check_depends: bool
) -> Differentiated:
    """Return the loss over the whole batch with its outcome and gradient.

    Args:
        objective: the loss function.
        state: the gradient is with respect to its parameters.
        batch: the whole batch.
        key: uint32 [2]; several microbatches receive a key each, made from it.
        check_depends: refuse a loss that depends on no parameter.
    """
    narrowed: Narrowed | None = getattr(objective.loss_fn, "narrowed", None)
    if narrowed is not None and narrowed.whole is not objective.loss_fn:
        narrowed = None
    params = state.params
    if narrowed is not None:
        objective = objective._replace(loss_fn=narrowed.loss_fn)
        state = state._replace(params=narrowed.cast(params))
    chain, ranks, joined_later = None, objective.ranks, False
    if ranks is not None:
        chain, key = Chain(ranks, state.rng), fold_in(key, ranks.rank)
        joined_later = objective.microbatches == 1 and isinstance(params, Packed)
        if joined_later:  # the gradients are joined, scaled and cast to what is sent by one kernel
            state = state._replace(params=viewed(state.params))
    with microbatching.cut_into(objective.microbatches, 1 if ranks is None else ranks.size):
        if objective.microbatches > 1:
            made, weights = _whole(objective, state, batch, key, chain, check_depends)
        else:
            made, weights = _alone(objective, state, batch, key, chain, check_depends)
    if narrowed is not None and not joined_later:  # a part of a vector was cast, leaf by leaf
        made = made._replace(gradients=packed_like(objective.caller, made.gradients, params))
    if chain is not None:
        return merging.over_ranks(objective, chain, made, weights, params)
    if narrowed is None or objective.microbatches > 1:  # the gradients of microbatches are sums in float32
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
    """Differentiate the loss of a batch that is not cut; like `_whole` otherwise."""
    inputs = state.params, state.model_state, batch, key
    made = _part(objective, *inputs, check_depends=check_depends)
    if chain is None or not isinstance(made.outcome.loss, MeanSum):
        return made, None
    weights = _weights(objective, state, batch, [key], chain)
    # On the same arrays, mx.compile would fail if the loss function used mx.split on the batch.
    again = state.params, state.model_state, after(batch, weights), key
    return _part(objective, *again, weights, check_depends=check_depends), weights


def _part(
    objective: Objective,
    params: Params,
    model_state: Tree,
    batch: Batch,
    key: mx.array,
    weights: list[mx.array] | None = None,
    *,
    check_depends: bool = False,
) -> Differentiated:
    """Differentiate the loss of one microbatch; `weights` are the terms' weights over the whole batch."""

    def loss(leaves: list[mx.array], others: list[mx.array]) -> tuple[mx.array, Outcome, list[Observed]]:
        held, data = tree.unflatten((model_state, batch), others)
        with observing.recording(objective.watches) as observed:
            # The handles of the leaves are new ones, made by mx.value_and_grad.
            outcome = objective.outcome(tree.unflatten(params, leaves), held, data, key, owned=True)
        value = outcome.loss.value
        if weights is not None:
            value = _share(outcome.loss, weights, objective.parts)
        # The value is computed from the loss, but from none of these.
        numbers = tree.leaves((None if weights is None else outcome.loss, outcome.metrics, observed))
        return before_gradient(value, numbers), outcome, observed

    # mx.value_and_grad refuses the None that a tree may hold, so it receives leaves. The model_state and the
    # batch are arguments too. In a microbatch they depend on earlier gradients. If the function captured
    # them, gradients through this step would be wrong.
    leaves, others = tree.leaves(params), own(tree.leaves((model_state, batch)))
    with no_backward_draws(objective.caller):
        (value, outcome, observed), gradients = mx.value_and_grad(loss)(leaves, others)
    if check_depends:
        _check_depends(objective.caller, gradients)
    return Differentiated(value, outcome, tree.unflatten(params, gradients), observed)


def _whole(
    objective: Objective,
    state: TrainState,
    batch: Batch,
    key: mx.array,
    chain: Chain | None,
    check_depends: bool,
) -> tuple[Differentiated, list[mx.array] | None]:
    """Differentiate the loss of each microbatch in turn, and merge them.

    Returns:
        The result over the batch of this rank, and the weights of the terms of a sum of means.
    """
    merged: Outcome | None = None
    summed: Updates = None
    observed: list[Observed] = []
    squares: list[mx.array] = []
    with_weight: list[mx.array] = []
    weights: list[mx.array] | None = None
    keys = list(mx.random.split(key, objective.microbatches))
    for index, part_key in enumerate(keys):
        cut = microbatch(batch, index, len(keys))
        if merged is not None:
            # Also after the loss and the metrics: if they were computed at the end, the logits of every part
            # would be in memory until then.
            cut = after(cut, (summed, observed, squares, merged.loss, merged.metrics))
        inputs = state.params, state.model_state if merged is None else merged.model_state, cut, part_key
        part = _part(objective, *inputs, weights, check_depends=check_depends)
        if weights is None and isinstance(part.outcome.loss, MeanSum):
            weights = _weights(objective, state, batch, keys, chain)
            part = _part(objective, *inputs, weights, check_depends=check_depends)
        weight = part.outcome.loss.weight if weights is None else mx.array(1.0)
        # Auxiliary outputs of mx.value_and_grad carry no outer gradient, such as that of a learning rate, so
        # the total is computed from the value.
        outcome = part.outcome._replace(loss=Mean(part.value * weight, weight))
        # Computed as the gradient of the mean times its weight: float16 could overflow in the gradient of the
        # total.
        weighted = tree.map(lambda g, w=weight: w * g.astype(mx.float32), part.gradients)
        before, summed = summed, weighted if merged is None else tree.map(mx.add, summed, weighted)
        if objective.small_squares:
            squares.append(_weighted_square(part, weight, summed, before))
            with_weight.append(_has_weight(part.outcome.loss))
        observed = (
            part.observed if merged is None else measuring.merged(objective.watches, observed, part.observed)
        )
        merged = outcome if merged is None else merged.merge(outcome)
    assert merged is not None
    assert isinstance(merged.loss, Mean)
    value, gradients = merged.loss.value, tree.map(merged.loss.share, summed)
    small, parts = None, None
    if squares:
        small, parts = merged.loss.share(tree.added(squares)), tree.added(with_weight)
        if weights is not None and chain is None:  # `_share` makes up for the parts without weight
            small = small * (parts / len(keys))
    if weights is not None:
        merged = merged._replace(loss=Mean(value * weights[0], weights[0]))
    return Differentiated(value, merged, gradients, observed, small, parts), weights


def _weights(
    objective: Objective, state: TrainState, batch: Batch, keys: list[mx.array], chain: Chain | None
) -> list[mx.array]:
    """Return the weight of each term of a sum of means over the whole batch.

    With these weights, one gradient for each microbatch covers all terms. Evaluation is lazy: the device
    computes only what the weights depend on, which is mostly a mask of the batch.
    """
    summed: list[mx.array] | None = None
    model_state = state.model_state
    for index, key in enumerate(keys):
        cut = microbatch(batch, index, len(keys))
        if summed is not None:
            cut = after(cut, summed)
        outcome = objective.outcome(state.params, model_state, cut, key)
        model_state = outcome.model_state
        terms = outcome.loss.terms if isinstance(outcome.loss, MeanSum) else (outcome.loss,)
        if summed is not None and len(summed) != len(terms):
            raise checks.error(
                objective.caller,
                "the loss must be a sum of the same number of means in every microbatch, "
                f"got {len(summed)} and {len(terms)}",
            )
        weights = [term.weight for term in terms]
        summed = weights if summed is None else [a + b for a, b in zip(summed, weights, strict=True)]
    assert summed is not None
    return summed if chain is None else chain.sum_numbers(summed)


def _share(loss: AnyMean, weights: list[mx.array], count: int) -> mx.array:
    """Return a microbatch's contribution to the loss of the whole batch, times the number of microbatches.

    The factor keeps the gradient as large as that of the whole batch: in float16 a smaller one could
    underflow.
    """
    assert isinstance(loss, MeanSum)
    parts = [Mean(term.total, whole).value for term, whole in zip(loss.terms, weights, strict=True)]
    return count * sum(parts[1:], parts[0])


def _weighted_square(
    part: Differentiated, weight: mx.array, summed: Updates, before: Updates | None
) -> mx.array:
    """Return the squared norm of the gradients of a microbatch times its weight, 0-d float32.

    Args:
        part: the microbatch.
        weight: 0-d.
        summed: the weighted sum of the gradients of the microbatches so far, float32.
        before: the same without this microbatch; `None` for the first one.
    """
    wide = all(gradient.dtype == mx.float32 for gradient in tree.leaves(part.gradients))
    if wide and cuda.serves(tree.leaves(summed)):
        # The sums are in memory. Gradients of a reduced dtype that the loss function casts would each be cast
        # to float32 by a kernel of its own.
        parts = norms.partial_sums(summed) if before is None else norms.distance_sums(summed, before)
        return mx.where(weight == 0, 0.0, sums.total(parts.vector) / weight)
    return weight * mx.square(part.norm)


def _has_weight(loss: AnyMean) -> mx.array:
    """Return 1 if a term of the loss has a weight other than 0, else 0: 0-d float32."""
    terms = loss.terms if isinstance(loss, MeanSum) else (loss,)
    return mx.stack([term.weight != 0 for term in terms]).any().astype(mx.float32)


def _check_depends(caller: str, gradients: list[mx.array]) -> None:
    """Refuse a loss that depends on no parameter: MLX returns plain zeros as such gradients."""
    for gradient in gradients:
        made_of = graph.primitives(gradient)
        if "Full" not in made_of or made_of - {"Full", "Broadcast"}:
            return
    raise checks.error(caller, "the loss does not depend on any of the parameters: every gradient is zero")
