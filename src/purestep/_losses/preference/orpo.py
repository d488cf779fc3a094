"""ORPO: likelihood and preference in one loss, without a reference."""

import math

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.preference.pairs import kept_logps, pair_metrics, softplus

_NEAREST = -(2.0**-24)  # the log-probability closest to zero whose odds are told apart from infinity


def orpo_loss(
    chosen_logps: mx.array,
    rejected_logps: mx.array,
    *,
    chosen_nll: mx.array | None = None,
    beta: float | mx.array = 0.1,
    weights: mx.array | None = None,
) -> tuple[Mean, dict[str, Mean]]:
    """Return the likelihood of the chosen completion plus a penalty on the odds of the other.

    With `log_odds(l) = l - log(1 - exp(l))`:

        chosen_nll - beta * log(sigmoid(log_odds(chosen) - log_odds(rejected)))

    Args:
        chosen_logps: floating [batch], at most 0, `sequence_logps(..., average=True)` of the preferred
            completions. Closer to 0 than 2**-24, as of a completion without a token, the odds are held.
        rejected_logps: [batch], of the others.
        chosen_nll: [batch], the negative log-likelihood to keep low; None: `-chosen_logps`. With the
            prompt's tokens in its mask, `-sequence_logps(..., average=True)` trains on them too.
        beta: above 0, the paper's lambda.
        weights: [batch], as for `dpo_loss`.

    Returns:
        `(Mean, metrics)` over pairs; the metrics of `dpo_loss`, the reference being zero, with `nll` and
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
    given = {"chosen_logps": chosen_logps, "rejected_logps": rejected_logps}
    if chosen_nll is not None:
        given["chosen_nll"] = chosen_nll
    counts, (chosen, rejected, *rest) = kept_logps(caller, weights, given)
    nll = rest[0] if rest else -chosen
    log_odds = _log_odds(chosen) - _log_odds(rejected)
    metrics = pair_metrics(beta * chosen, beta * rejected, counts)
    metrics["nll"] = Mean.of(mx.stop_gradient(nll), counts)
    metrics["log_odds"] = Mean.of(mx.stop_gradient(log_odds), counts)
    return Mean.of(nll + beta * softplus(-log_odds), counts), metrics


def _log_odds(logps: mx.array) -> mx.array:
    """Return `l - log(1 - exp(l))`, by the form of the logarithm that keeps its digits."""
    logps = mx.minimum(logps, _NEAREST)
    near = logps > -math.log(2)
    # Each form is given an argument that it can bear where the other is taken: no zero times infinity.
    from_near = mx.log(-mx.expm1(mx.where(near, logps, -0.5)))
    from_far = mx.log1p(-mx.exp(mx.where(near, -1.0, logps)))
    return logps - mx.where(near, from_near, from_far)
