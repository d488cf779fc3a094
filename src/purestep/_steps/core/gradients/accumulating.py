"""The losses of the microbatches of one batch, and their gradients, computed in turn and added."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import mlx.core as mx

from purestep._core import cuda, norms, sums, tree
from purestep._core.mean import AnyMean, Mean, MeanSum
from purestep._core.tracing import microbatching
from purestep._core.types import Batch, Params, Tree, Updates
from purestep._layers.observing import Observed
from purestep._steps.core import measuring, staging
from purestep._steps.core.batches import after, microbatch
from purestep._steps.core.gradients.one import differentiated, weights_of_terms
from purestep._steps.core.objective import Differentiated, Objective, narrowed
from purestep._steps.core.outcome import Outcome
from purestep._steps.core.ranks.summing import Chain
from purestep._steps.core.staging import InseparableError
from purestep._steps.state import TrainState


class Carried(NamedTuple):
    """What the microbatches so far have made.

    Attributes:
        merged: their losses, metrics and model_state.
        summed: the weighted sum of their gradients, float32.
        observed: the statistics of each watch.
        square: the weighted square of the gradient of the last one, 0-d, or `None` if it is not wanted.
        has_weight: 1 or 0, whether the last one has a weight; `None` like `square`.
    """

    merged: Outcome
    summed: Updates
    observed: list[Observed]
    square: mx.array | None
    has_weight: mx.array | None


class Accumulated(NamedTuple):
    """What all microbatches have made.

    Attributes:
        last: after the last one.
        squares: `square` of each.
        with_weight: `has_weight` of each.
        weights: the weights of the terms of a sum of means; `None` for one mean.
    """

    last: Carried
    squares: list[mx.array]
    with_weight: list[mx.array]
    weights: list[mx.array] | None


class _SumOfMeansError(Exception):
    """Raised where a microbatch of a sum of means needs the weights of the whole batch."""


def accumulated_in_stages(
    objective: Objective, state: TrainState, batch: Batch, key: mx.array, *, check_depends: Callable[[], bool]
) -> Accumulated:
    """Return the sums over the microbatches, for `differentiate`, each computed by a compiled stage."""
    cast, inner = narrowed(objective)
    if cast is not None:
        state = state._replace(params=staging.stage("cast", cast, state.params))
    with microbatching.cut_into(objective.microbatches):
        return accumulate(inner, state, batch, key, None, check_depends)


def accumulate(
    objective: Objective,
    state: TrainState,
    batch: Batch,
    key: mx.array,
    chain: Chain | None,
    check_depends: Callable[[], bool],
) -> Accumulated:
    """Differentiate the loss of each microbatch in turn, and add the gradients."""
    carried: Carried | None = None
    squares: list[mx.array] = []
    with_weight: list[mx.array] = []
    weights: list[mx.array] | None = None
    keys = list(mx.random.split(key, objective.microbatches))
    for index, part_key in enumerate(keys):
        inputs = state.params, state.model_state, microbatch(batch, index, len(keys)), part_key
        follow = partial(_following, objective, check_depends)
        try:
            carried = staging.stage("microbatch", follow, carried, *inputs, weights)
        except _SumOfMeansError:
            if staging.active():
                raise InseparableError from None
            weights = weights_of_terms(objective, state, batch, keys, chain)
            carried = follow(carried, *inputs, weights)
        assert carried is not None
        staging.start(carried)
        if carried.square is not None and carried.has_weight is not None:
            squares.append(carried.square)
            with_weight.append(carried.has_weight)
    assert carried is not None
    return Accumulated(carried, squares, with_weight, weights)


def _following(
    objective: Objective,
    check_depends: Callable[[], bool],
    before: Carried | None,
    params: Params,
    model_state: Tree,
    batch: Batch,
    key: mx.array,
    weights: list[mx.array] | None,
) -> Carried:
    """Add a microbatch to those before it; `weights` are the terms' weights over the whole batch."""
    if before is not None:
        # Also after the loss and the metrics: if they were computed at the end, the logits of every part
        # would be in memory until then.
        merged, squares = before.merged, tree.leaves((before.square, before.has_weight))
        batch = after(batch, (before.summed, before.observed, squares, merged.loss, merged.metrics))
        model_state = merged.model_state
    part = differentiated(objective, params, model_state, batch, key, weights, check_depends=check_depends())
    if weights is None and isinstance(part.outcome.loss, MeanSum):
        raise _SumOfMeansError
    weight = part.outcome.loss.weight if weights is None else mx.array(1.0)
    # Auxiliary outputs of mx.value_and_grad carry no outer gradient, such as that of a learning rate, so the
    # total is computed from the value.
    outcome = part.outcome._replace(loss=Mean(part.value * weight, weight))
    # Computed as the gradient of the mean times its weight: float16 could overflow in the gradient of the
    # total.
    summed = tree.map(lambda g: weight * g.astype(mx.float32), part.gradients)
    if before is not None:
        summed = tree.map(mx.add, before.summed, summed)
    square, has_weight = None, None
    if objective.small_squares:
        square = _weighted_square(part, weight, summed, None if before is None else before.summed)
        has_weight = _has_weight(part.outcome.loss)
    if before is None:
        return Carried(outcome, summed, part.observed, square, has_weight)
    observed = measuring.merged(objective.watches, before.observed, part.observed)
    return Carried(before.merged.merge(outcome), summed, observed, square, has_weight)


def merged(objective: Objective, accumulated: Accumulated, chain: Chain | None) -> Differentiated:
    """Return the loss over the batch of this rank, and its gradient."""
    merged, summed, observed, *_ = accumulated.last
    weights = accumulated.weights
    assert isinstance(merged.loss, Mean)
    value, gradients = merged.loss.value, tree.map(merged.loss.share, summed)
    small, parts = None, None
    if accumulated.squares:
        small = merged.loss.share(tree.added(accumulated.squares))
        parts = tree.added(accumulated.with_weight)
        if weights is not None and chain is None:  # `_share` makes up for the parts without weight
            small = small * (parts / objective.microbatches)
    if weights is not None:
        merged = merged._replace(loss=Mean(value * weights[0], weights[0]))
    return Differentiated(value, merged, gradients, observed, small, parts)


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
