"""The loss, gradient and statistics of the whole batch, from those of the rows of each rank.

Ranks are merged as microbatches are: with the weight of the loss over the rows of each.
"""

from functools import partial

import mlx.core as mx

from purestep._core import norms, tree
from purestep._core.mean import Mean
from purestep._core.tracing.custom import is_capturing
from purestep._core.types import Params, Tree
from purestep._layers.observing import Observed
from purestep._steps.core import measuring
from purestep._steps.core.objective import Differentiated, Objective
from purestep._steps.core.ranks import sharding
from purestep._steps.core.ranks.summing import Chain, joined


def over_ranks(
    objective: Objective,
    chain: Chain,
    made: Differentiated,
    weights: list[mx.array] | None,
    params: Params,
) -> Differentiated:
    """Return the result over the rows of all ranks.

    Args:
        objective: the loss function.
        chain: the sums over ranks.
        made: the result over the rows of this rank.
        weights: for a sum of means, the weights of the terms over all ranks. The loss of each rank is then
            its share of the sum, times the number of ranks.
        params: the parameters of the step.
    """
    if not is_capturing():  # one rank alone may predict the memory of its step
        chain.ranks.agree(_described(made, weights))
    observed = _observed(objective, chain, made.observed)
    weight = made.outcome.loss.weight if weights is None else mx.array(1.0)
    numbers = [made.value * weight, weight]
    names = sorted(made.outcome.metrics)  # equal dicts may list their keys in another order
    means = [made.outcome.metrics[name] for name in names]
    averaged = [x for x in _sorted_leaves(made.outcome.model_state) if _is_floating(x)]
    small = [] if made.small_square is None else [made.small_square * weight, made.weighted_parts]
    summed = chain.sum_numbers([*numbers, *small, *tree.leaves(means), *averaged])
    loss = Mean(summed.pop(0), summed.pop(0))
    square, parts = None, None
    if small:
        square, parts = loss.share(summed.pop(0)), summed.pop(0)
        if weights is not None:
            square = square * (parts / objective.parts)
    count = len(tree.leaves(means))
    metrics = dict(zip(names, tree.unflatten(means, summed[:count]), strict=True))
    model_state = _averaged(chain, made.outcome.model_state, summed[count:])
    share = loss.share(weight)
    collect = partial(sharding.scattered, chain) if chain.ranks.sharded else chain.sum_gradients
    narrow = collect(made.gradients, share, params)
    gradients = tree.map(lambda x: x.astype(mx.float32), narrow)
    norms.same(gradients, narrow)
    value = loss.value
    outcome_loss = loss if weights is None else Mean(value * weights[0], weights[0])
    outcome = made.outcome._replace(loss=outcome_loss, metrics=metrics, model_state=model_state)
    return Differentiated(value, outcome, gradients, observed, square, parts, narrow, chain)


def _described(made: Differentiated, weights: list[mx.array] | None) -> list[str]:
    """Return what a rank sums, a line for each part of it."""
    terms = "a mean" if weights is None else f"a sum of {len(weights)} means"
    lines = [f"the loss, {terms}"]
    for name, mean in sorted(made.outcome.metrics.items()):
        lines.append(f"the metric {name!r}, of {len(tree.leaves(mean))} numbers")
    for what, values in (("model_state", made.outcome.model_state), ("the gradient", made.gradients)):
        for path, leaf in _sorted(values):
            lines.append(f"{what} {path} {tree.dtype_name(leaf.dtype)} {leaf.shape}".replace("  ", " "))
    return [*lines, *(f"statistics of layers {leaf.shape}" for leaf in tree.leaves(made.observed))]


def _averaged(chain: Chain, model_state: Tree, sums: list[mx.array]) -> Tree:
    """Return the model_state with the mean over ranks in place of each floating-point array."""
    found, remaining = {}, list(sums)
    for path, leaf in _sorted(model_state):
        found[path] = leaf
        if _is_floating(leaf):
            found[path] = (remaining.pop(0) / chain.ranks.size).astype(leaf.dtype)
    return tree.map_with_path(lambda path, _: found[path], model_state)


def _observed(objective: Objective, chain: Chain, observed: list[Observed]) -> list[Observed]:
    """Return the statistics of layers, merged over all ranks."""
    leaves = tree.leaves(observed)
    if not leaves:
        return observed
    dtypes = [leaf.dtype for leaf in leaves]
    rows = chain.gather(joined([leaf.astype(mx.float32) for leaf in leaves])[None])
    merged: list[Observed] | None = None
    for row in rows:
        begin, found = 0, []
        for leaf, dtype in zip(leaves, dtypes, strict=True):
            found.append(row[begin : begin + leaf.size].reshape(leaf.shape).astype(dtype))
            begin += leaf.size
        other = tree.unflatten(observed, found)
        merged = other if merged is None else measuring.merged(objective.watches, merged, other)
    assert merged is not None
    return merged


def _sorted(values: Tree) -> list[tuple[str, mx.array]]:
    return sorted(tree.items(values), key=lambda item: item[0])


def _sorted_leaves(values: Tree) -> list[mx.array]:
    return [leaf for _, leaf in _sorted(values)]


def _is_floating(leaf: mx.array) -> bool:
    return mx.issubdtype(leaf.dtype, mx.floating)
