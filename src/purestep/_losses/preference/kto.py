"""KTO: preferences without pairs, from single completions labelled good or bad."""

import mlx.core as mx

from purestep._core import checks, sums
from purestep._core.mean import Mean
from purestep._losses.core import inputs
from purestep._losses.preference.pairs import masked_logps


def kto_loss(
    logps: mx.array,
    ref_logps: mx.array,
    desirable: mx.array,
    *,
    kl: mx.array | None = None,
    beta: float | mx.array = 0.1,
    desirable_weight: float | mx.array = 1.0,
    undesirable_weight: float | mx.array = 1.0,
    weights: mx.array | None = None,
) -> tuple[Mean, dict[str, Mean]]:
    """Return the loss of Kahneman-Tversky optimization (KTO), for single completions that are good or bad.

    With `h = logps - ref_logps` and the reference point `z = max(0, mean(kl))`, which has no gradient:

        desirable_weight * (1 - sigmoid(beta * (h - z)))         for a desirable completion
        undesirable_weight * (1 - sigmoid(beta * (z - h)))       for an undesirable one

    Args:
        logps: floating [batch], `sequence_logps` of the completions.
        ref_logps: [batch], of the reference; no gradient flows to it.
        desirable: [batch], numbers or booleans: nonzero for good completions.
        kl: [m], estimates of the divergence from the reference: `logps - ref_logps` of prompts paired with
            completions of *other* prompts; or their mean, a 0-d array. `None`: zero. With microbatches, pass
            the mean over the batch: the mean over [m] would differ in each microbatch.
        beta: above 0.
        desirable_weight: at least 0. The paper recommends that the ratio of the two weights times the ratio
            of the two counts lies in [1, 4/3].
        undesirable_weight: at least 0.
        weights: as in `dpo_loss`.

    Returns:
        `(Mean, metrics)` over completions; `desirable_weight` and `undesirable_weight` change only the total
        of the mean, not its weight. The metrics are `rewards_chosen` and `rewards_rejected`, beta times `h`
        over desirable and over other completions, and `kl`, the reference point `z`.

    Raises:
        ValueError: if shapes do not fit or an option is out of range.
        TypeError: if the log-probabilities are not floating.

    Reference: Ethayarajh et al., arXiv:2402.01306.

    >>> kto_loss(mx.array([-1.0, -2.0]), mx.array([-1.0, -2.0]), mx.array([True, False]))[0].value
    array(0.5, dtype=float32)
    """
    caller = "kto_loss"
    beta = checks.number(caller, "beta", beta, above=0)
    desirable_weight = checks.number(caller, "desirable_weight", desirable_weight, least=0)
    undesirable_weight = checks.number(caller, "undesirable_weight", undesirable_weight, least=0)
    weights, (logps, ref_logps) = masked_logps(caller, weights, {"logps": logps, "ref_logps": ref_logps})
    inputs.same_shape(caller, "desirable", desirable, "logps", logps)
    point = mx.array(0.0)
    if kl is not None:
        inputs.floating(caller, "kl", kl)
        if kl.size == 0:
            raise checks.error(caller, f"kl must hold at least one number, got shape {kl.shape}")
        point = mx.stop_gradient(mx.maximum(sums.mean(kl), 0.0))
    good = desirable.astype(mx.bool_)
    moved = logps - mx.stop_gradient(ref_logps)
    sign = mx.where(good, 1.0, -1.0)
    losses = mx.where(good, desirable_weight, undesirable_weight) * mx.sigmoid(beta * sign * (point - moved))
    counted = mx.ones(losses.shape) if weights is None else weights
    rewards = mx.stop_gradient(beta * moved)
    metrics = {
        "rewards_chosen": Mean.of(rewards, mx.where(good, counted, 0.0)),
        "rewards_rejected": Mean.of(rewards, mx.where(good, 0.0, counted)),
        "kl": Mean.of(point),
    }
    return Mean.of(losses, weights), metrics
