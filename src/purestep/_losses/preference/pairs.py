"""What the losses on preferences share: shapes, weights, rewards as metrics."""

import mlx.core as mx

from purestep._core.mean import Mean
from purestep._losses.core import reduce


def kept_logps(
    caller: str, weights: mx.array | None, named: dict[str, mx.array]
) -> tuple[mx.array | None, list[mx.array]]:
    """Return the weights, and arrays of one shape in float32, zero where the weights are."""
    first, like = next(iter(named.items()))
    for name, values in named.items():
        reduce.floating(caller, name, values)
        reduce.same_shape(caller, name, values, first, like)
    counts = reduce.counts(caller, weights, like.shape, f"{first}'")
    return counts, [reduce.keep(counts, values.astype(mx.float32)) for values in named.values()]


def pair_metrics(chosen: mx.array, rejected: mx.array, counts: mx.array | None) -> dict[str, Mean]:
    """Return the rewards of both sides, their difference, and how often it is positive; no gradient."""
    chosen, rejected = mx.stop_gradient(chosen), mx.stop_gradient(rejected)
    return {
        "rewards_chosen": Mean.of(chosen, counts),
        "rewards_rejected": Mean.of(rejected, counts),
        "rewards_margins": Mean.of(chosen - rejected, counts),
        "rewards_accuracies": Mean.of((chosen > rejected).astype(mx.float32), counts),
    }


def softplus(x: mx.array) -> mx.array:
    """Return `log(1 + exp(x))`, which is `-log(sigmoid(-x))`."""
    return mx.logaddexp(x, 0.0)
