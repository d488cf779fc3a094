"""Inputs and metrics of the losses on pairs of completions."""

import mlx.core as mx

from purestep._core.mean import Mean
from purestep._losses.core import inputs, weighting


def masked_logps(
    caller: str, weights: mx.array | None, named: dict[str, mx.array]
) -> tuple[mx.array | None, list[mx.array]]:
    """Return the weights, and arrays of one shape in float32 with 0 where the weight is 0."""
    first, like = next(iter(named.items()))
    for name, values in named.items():
        inputs.floating(caller, name, values)
        inputs.same_shape(caller, name, values, first, like)
    weights = weighting.broadcast(caller, weights, like.shape, f"{first}'")
    return weights, [weighting.masked(weights, values.astype(mx.float32)) for values in named.values()]


def logps_and_nll(
    caller: str,
    weights: mx.array | None,
    chosen_logps: mx.array,
    rejected_logps: mx.array,
    chosen_nll: mx.array | None,
) -> tuple[mx.array | None, mx.array, mx.array, mx.array]:
    """Return the weights, and the masked log-probabilities and negative log-likelihoods of pairs."""
    named = {"chosen_logps": chosen_logps, "rejected_logps": rejected_logps}
    if chosen_nll is None:
        weights, (chosen, rejected) = masked_logps(caller, weights, named)
        return weights, chosen, rejected, -chosen
    weights, (chosen, rejected, nll) = masked_logps(caller, weights, named | {"chosen_nll": chosen_nll})
    return weights, chosen, rejected, nll


def pair_metrics(chosen: mx.array, rejected: mx.array, weights: mx.array | None) -> dict[str, Mean]:
    """Return the rewards, their difference, and the fraction of positive differences; no gradient."""
    chosen, rejected = mx.stop_gradient(chosen), mx.stop_gradient(rejected)
    return {
        "rewards_chosen": Mean.of(chosen, weights),
        "rewards_rejected": Mean.of(rejected, weights),
        "rewards_margins": Mean.of(chosen - rejected, weights),
        "rewards_accuracies": Mean.of((chosen > rejected).astype(mx.float32), weights),
    }
