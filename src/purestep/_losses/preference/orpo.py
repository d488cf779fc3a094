"""ORPO: likelihood of the preferred completion, a penalty on the odds of the other, and no reference."""

import math

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core.numerics import softplus
from purestep._losses.preference.pairs import logps_and_nll, pair_metrics

_NEAREST = -(2.0**-24)  # the log-probability closest to zero that has finite odds in float32


def orpo_loss(
    chosen_logps: mx.array,
    rejected_logps: mx.array,
    *,
    chosen_nll: mx.array | None = None,
    beta: float | mx.array = 0.1,
    weights: mx.array | None = None,
) -> tuple[Mean, dict[str, Mean]]:
    """Return the negative log-likelihood of the preferred completion plus a penalty on the odds of the other.

    With `log_odds(l) = l - log(1 - exp(l))`:

        chosen_nll - beta * log(sigmoid(log_odds(chosen) - log_odds(rejected)))

    Args:
        chosen_logps: floating [batch], at most 0, `sequence_logps(..., average=True)` of the preferred
            completions. A value above -2**-24, such as that of a completion without tokens, has the odds of
            -2**-24.
        rejected_logps: [batch], of the rejected completions.
        chosen_nll: [batch], negative log-likelihood of the preferred completions; `None`: `-chosen_logps`.
            To train on the prompts too, include their tokens in the mask of the `sequence_logps` passed here.
        beta: above 0, the paper's lambda.
        weights: as in `dpo_loss`.

    Returns:
        `(Mean, metrics)` over pairs, with the metrics of `dpo_loss` for a reference of zero, `nll`, and
        `log_odds`, the logarithm of the ratio of odds.

    Raises:
        ValueError, TypeError: as `dpo_loss`.

    Reference: Hong et al., arXiv:2403.07691.

    >>> loss, metrics = orpo_loss(mx.array([-1.0]), mx.array([-1.0]), beta=1.0)
    >>> loss.value, metrics["log_odds"].value
    (array(1.69315, dtype=float32), array(0, dtype=float32))
    """
    caller = "orpo_loss"
    beta = checks.number(caller, "beta", beta, above=0)
    weights, chosen, rejected, nll = logps_and_nll(caller, weights, chosen_logps, rejected_logps, chosen_nll)
    log_odds = _log_odds(chosen) - _log_odds(rejected)
    metrics = pair_metrics(beta * chosen, beta * rejected, weights)
    metrics["nll"] = Mean.of(mx.stop_gradient(nll), weights)
    metrics["log_odds"] = Mean.of(mx.stop_gradient(log_odds), weights)
    return Mean.of(nll + beta * softplus(-log_odds), weights), metrics


def _log_odds(logps: mx.array) -> mx.array:
    """Return `l - log(1 - exp(l))`, with the form of the logarithm that keeps its digits."""
    logps = mx.minimum(logps, _NEAREST)
    near = logps > -math.log(2)
    # The form that is not selected gets a harmless argument: its gradient must not be zero times infinity.
    from_near = mx.log(-mx.expm1(mx.where(near, logps, -0.5)))
    from_far = mx.log1p(-mx.exp(mx.where(near, -1.0, logps)))
    return logps - mx.where(near, from_near, from_far)
