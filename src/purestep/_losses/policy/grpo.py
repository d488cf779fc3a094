"""GRPO and its variants: the clipped objective for groups of sampled completions.

Rows are completions. Log-probabilities and masks are [n, length - 1], as `token_logps` and `completion_mask`
return them.
"""

from typing import Literal, NamedTuple, TypeAlias, get_args

import mlx.core as mx

from purestep._core import checks, sums
from purestep._core.mean import Mean
from purestep._losses.core import weighting
from purestep._losses.policy.surrogate import clipped_objective, constants_beside, row_constants, token_mask

LossType: TypeAlias = Literal["grpo", "bnpo", "dr_grpo", "dapo"]
Level: TypeAlias = Literal["token", "sequence"]
KLEstimator: TypeAlias = Literal["k1", "k2", "k3"]
LOSS_TYPES: tuple[LossType, ...] = get_args(LossType)
LEVELS: tuple[Level, ...] = get_args(Level)
KL_ESTIMATORS: tuple[KLEstimator, ...] = get_args(KLEstimator)


def grpo_loss(
    logps: mx.array,
    behavior_logps: mx.array,
    advantages: mx.array,
    completion_mask: mx.array,
    *,
    ref_logps: mx.array | None = None,
    beta: float | mx.array = 0.0,
    epsilon: float | mx.array = 0.2,
    epsilon_high: float | mx.array | None = None,
    delta: float | mx.array | None = None,
    loss_type: LossType = "grpo",
    importance_sampling_level: Level = "token",
    kl_estimator: KLEstimator = "k3",
    max_completion_length: int | mx.array | None = None,
    truncated: mx.array | None = None,
) -> tuple[Mean, dict[str, Mean]]:
    """Return the clipped policy objective, plus a penalty on the divergence from a reference.

    With `d = ref_logp - logp` and `ratio = exp(logp - behavior_logp)`, where `behavior_logp` is that of the
    policy that *sampled* the token, the loss of one token is

        -min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A) + beta * kl
        kl = -d  (k1),  d**2 / 2  (k2),  exp(d) - d - 1  (k3)

    At the level "sequence" (GSPO) each completion has one ratio, the exponential of the mean of
    `logp - behavior_logp` over its tokens. `loss_type` selects the mean:

    - "grpo": the mean over completions of the mean over their tokens; the weight is the number of
      completions.
    - "bnpo", "dapo": the mean over all tokens, including those of other microbatches; the weight is the
      number of tokens. The two are equal here; they differ in libraries that average means.
    - "dr_grpo": the sum over tokens, divided by the number of completions times `max_completion_length`.

    A completion without tokens in the mask is skipped, and adds no weight.

    Args:
        logps: floating [n, length - 1], of the policy in training, at the sampling temperature.
        behavior_logps: [n, length - 1], of the policy that sampled; no gradient flows to it. In the first
            step after sampling it may be `logps`.
        advantages: floating [n]; no gradient flows to them. See `group_advantages`.
        completion_mask: [n, length - 1], 1 on the tokens of completions and 0 elsewhere, where the other
            arrays may be infinite or NaN.
        ref_logps: [n, length - 1], of the reference; no gradient flows to it. Required if beta is not 0.
        beta: at least 0, factor of the divergence, in units of advantage per nat.
        epsilon: in (0, 1], how far the ratio may fall below 1.
        epsilon_high: above 0, how far the ratio may rise above 1; `None` is `epsilon`. DAPO recommends 0.28.
        delta: greater than 1 + epsilon_high: an upper bound on the ratio of tokens with a negative advantage,
            which the minimum does not bound. `None`: no bound.
        loss_type: "grpo", "bnpo", "dr_grpo" or "dapo".
        importance_sampling_level: "token" or "sequence".
        kl_estimator: "k1", "k2" or "k3". All estimate KL(policy || reference) from samples of the policy.
            The gradient of k1 is zero on average, so it only measures the divergence.
        max_completion_length: above 0, in tokens; required for "dr_grpo".
        truncated: [n], numbers or booleans: nonzero for completions to skip because they were cut off;
            `None`: none are skipped.

    Returns:
        `(Mean, metrics)`. The metrics are `ratio`, the mean ratio, and `clip_fraction`, the fraction of
        ratios at a bound, which have no gradient. Both are over tokens or, at the level "sequence", over
        completions. With `ref_logps` also `kl`, in nats per token.

    Raises:
        ValueError: if shapes do not fit, or an option is out of its range or missing.
        TypeError: if log-probabilities or advantages are not floating.

    References: GRPO, Shao et al., arXiv:2402.03300; DAPO, Yu et al., arXiv:2503.14476; Dr. GRPO, Liu et
    al., arXiv:2503.20783; GSPO, Zheng et al., arXiv:2507.18071; delta, Ye et al., arXiv:1912.09729; the
    estimators, http://joschu.net/blog/kl-approx.html.

    >>> logps, mask = mx.array([[-1.0, -2.0], [-1.0, 0.0]]), mx.array([[1.0, 1.0], [1.0, 0.0]])
    >>> behavior_logps = mx.array([[-1.5, -2.0], [-1.0, 0.0]])
    >>> loss, metrics = grpo_loss(logps, behavior_logps, mx.array([1.0, -1.0]), mask)
    >>> loss
    Mean(total=array(-0.1, dtype=float32), weight=array(2, dtype=float32))
    >>> metrics["clip_fraction"]
    Mean(total=array(1, dtype=float32), weight=array(3, dtype=float32))
    """
    caller = "grpo_loss"
    bounds = _Bounds(epsilon, epsilon if epsilon_high is None else epsilon_high, delta).checked(caller)
    beta = checks.number(caller, "beta", beta, least=0)
    checks.one_of(caller, "loss_type", loss_type, LOSS_TYPES)
    checks.one_of(caller, "importance_sampling_level", importance_sampling_level, LEVELS)
    checks.one_of(caller, "kl_estimator", kl_estimator, KL_ESTIMATORS)
    if ref_logps is None and not (checks.is_number(beta) and beta == 0):
        raise checks.error(caller, f"ref_logps must be given if beta is not 0, got None with beta {beta}")
    if loss_type == "dr_grpo":
        max_completion_length = _length(caller, max_completion_length)
    mask = token_mask(caller, logps, completion_mask, truncated)
    logps, behavior = constants_beside(caller, mask, logps, behavior_logps=behavior_logps)
    advantages = row_constants(caller, "advantages", advantages, mask.shape[0])

    parts, log_ratio = _log_ratios(logps - behavior, mask, importance_sampling_level)
    spread = weighting.masked(parts, mx.broadcast_to(advantages[:, None], parts.shape))
    objective = clipped_objective(log_ratio, spread, *bounds)
    metrics = objective.metrics(parts)
    losses = mx.broadcast_to(objective.losses, mask.shape)
    if ref_logps is not None:
        _, ref = constants_beside(caller, mask, logps, ref_logps=ref_logps)
        kl = _kl(ref - logps, kl_estimator)
        metrics["kl"] = Mean.of(mx.stop_gradient(kl), mask)
        if isinstance(beta, mx.array) or beta:
            losses = losses + beta * kl
    return _average(losses, mask, loss_type, max_completion_length), metrics


class _Bounds(NamedTuple):
    """The bounds of the ratio, documented in `grpo_loss`."""

    epsilon: float | mx.array
    epsilon_high: float | mx.array
    delta: float | mx.array | None

    def checked(self, caller: str) -> "_Bounds":
        low = checks.number(caller, "epsilon", self.epsilon, above=0, most=1)
        high = checks.number(caller, "epsilon_high", self.epsilon_high, above=0)
        delta = self.delta
        if delta is not None:
            least = None if isinstance(high, mx.array) else 1 + high
            delta = checks.number(caller, "delta", delta, above=least)
        return _Bounds(low, high, delta)


def _length(caller: str, length: int | mx.array | None) -> int | mx.array:
    if length is None:
        raise checks.error(caller, "max_completion_length must be given for loss_type 'dr_grpo', got None")
    return checks.number(caller, "max_completion_length", length, above=0)


def _log_ratios(differences: mx.array, mask: mx.array, level: Level) -> tuple[mx.array, mx.array]:
    """Return the weight and the logarithm of each ratio: [n, length - 1], or [n, 1] for sequences."""
    if level == "token":
        return mask, differences
    count = sums.total(mask, -1)
    mean = sums.total(differences * mask, -1, keepdims=True) / _or_one(count)[:, None]
    return (count != 0).astype(mx.float32)[:, None], mean


def _average(
    losses: mx.array, mask: mx.array, loss_type: LossType, max_completion_length: int | mx.array | None
) -> Mean:
    rows, count = sums.total(losses * mask, -1), sums.total(mask, -1)
    present = sums.total(count != 0)
    if loss_type == "grpo":
        return Mean(sums.total(rows / _or_one(count)), present)
    if loss_type == "dr_grpo" and max_completion_length is not None:
        return Mean(sums.total(rows), present * max_completion_length)
    return Mean(sums.total(rows), sums.total(count))


def _kl(difference: mx.array, estimator: KLEstimator) -> mx.array:
    """Estimate KL(policy || reference) from `log reference - log policy` of the policy's tokens."""
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return mx.square(difference) / 2
    return mx.expm1(difference) - difference


def _or_one(count: mx.array) -> mx.array:
    return mx.where(count == 0, 1.0, count)
