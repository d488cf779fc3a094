"""The loss over one part of a batch, and its gradient."""

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.mean import AnyMean, Mean, MeanSum
from purestep._core.tracing import graph
from purestep._core.tracing.ordering import before_gradient
from purestep._core.types import Batch, Params, Tree
from purestep._layers import observing
from purestep._layers.observing import Observed
from purestep._steps.core.batches import after, microbatch
from purestep._steps.core.objective import Differentiated, Objective
from purestep._steps.core.outcome import Outcome, no_backward_draws, own
from purestep._steps.core.ranks.summing import Chain
from purestep._steps.state import TrainState


def differentiated(
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


def weights_of_terms(
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


def _check_depends(caller: str, gradients: list[mx.array]) -> None:
    """Refuse a loss that depends on no parameter: MLX returns plain zeros as such gradients."""
    for gradient in gradients:
        made_of = graph.primitives(gradient)
        if "Full" not in made_of or made_of - {"Full", "Broadcast"}:
            return
    raise checks.error(caller, "the loss does not depend on any of the parameters: every gradient is zero")
