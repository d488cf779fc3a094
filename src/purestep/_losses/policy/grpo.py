"""Policy gradients from groups of sampled completions: advantages within the group, GRPO and its relatives.

Rows are completions. Log-probabilities and masks are [n, length - 1], as `losses.sequence` makes them.
"""

import mlx.core as mx

from purestep._core import checks, sums
from purestep._core.mean import Mean
from purestep._losses.core import reduce
from purestep._losses.policy.surrogate import clipped_objective, constants_beside, row_constants, token_mask

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")
LEVELS = ("token", "sequence")
KL_ESTIMATORS = ("k1", "k2", "k3")


def group_advantages(
    rewards: mx.array, group_size: int, *, scale_rewards: bool = True, eps: float | mx.array = 1e-4
) -> mx.array:
    """Compare each reward with those of its own group.

        (reward - mean(group)) / (std(group) + eps)

    The standard deviation divides by `group_size - 1`. A group whose rewards are all equal teaches nothing:
    its advantages are exactly zero.

    Args:
        rewards: [n], the completions of one prompt next to each other.
        group_size: at least 2, the completions of a prompt; divides n.
        scale_rewards: divide by the standard deviation. Dr. GRPO does not: it favours prompts that are
            almost always, or almost never, solved.
        eps: above 0, what keeps small deviations from being blown up.

    Returns:
        float32 [n], without a gradient.

    Raises:
        ValueError: if the rewards are not [n] or do not divide into groups.

    Reference: GRPO, Shao et al., arXiv:2402.03300; Dr. GRPO, Liu et al., arXiv:2503.20783.

    >>> group_advantages(mx.array([1.0, 0.0, 5.0, 5.0]), 2, scale_rewards=False)
    array([0.5, -0.5, 0, 0], dtype=float32)
    """
    caller = "group_advantages"
    eps = checks.number(caller, "eps", eps, above=0)
    centered = _centered(_groups(caller, rewards, group_size))
    if scale_rewards:
        # In units of the largest: the square of 1e20 is more than float32 holds.
        largest = mx.abs(centered).max(axis=-1, keepdims=True)
        units = centered / mx.where(largest == 0, 1.0, largest)
        deviation = largest * mx.sqrt(sums.total(mx.square(units), -1, keepdims=True) / (group_size - 1))
        centered = centered / (deviation + eps)
    return mx.stop_gradient(centered.reshape(rewards.shape))


def leave_one_out_advantages(rewards: mx.array, group_size: int) -> mx.array:
    """Compare each reward with the mean of the others of its group.

        reward - sum(others of the group) / (group_size - 1)

    The baseline does not depend on the completion it is used for, so the gradient of `reinforce_loss` with
    these advantages is unbiased.

    Args:
        rewards: [n], the completions of one prompt next to each other.
        group_size: at least 2, the completions of a prompt; divides n.

    Returns:
        float32 [n], without a gradient; exactly zero where the rewards of a group are equal.

    Raises:
        ValueError: if the rewards are not [n] or do not divide into groups.

    Reference: RLOO, Ahmadian et al., arXiv:2402.14740.

    >>> leave_one_out_advantages(mx.array([3.0, 0.0, 0.0]), 3)
    array([3, -1.5, -1.5], dtype=float32)
    """
    centered = _centered(_groups("leave_one_out_advantages", rewards, group_size))
    return mx.stop_gradient((centered * (group_size / (group_size - 1))).reshape(rewards.shape))


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
    loss_type: str = "grpo",
    importance_sampling_level: str = "token",
    kl_estimator: str = "k3",
    max_completion_length: int | mx.array | None = None,
    truncated: mx.array | None = None,
) -> tuple[Mean, dict[str, Mean]]:
    """Return the clipped policy objective, plus what it costs to leave the reference.

    For one token, with `ratio = exp(logp - behavior_logp)`, the change since the policy that *sampled* it,
    and `d = ref_logp - logp`:

        -min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A) + beta * kl
        kl = -d  (k1),  d**2 / 2  (k2),  exp(d) - d - 1  (k3)

    At the level "sequence" (GSPO) the ratio is one number a completion, the exponential of the mean of
    `logp - behavior_logp` over its tokens. `loss_type` says what the tokens are averaged over:

    - "grpo": the mean over completions of the mean over their tokens; the weight counts completions.
    - "bnpo", "dapo": the mean over all tokens, those of other microbatches and ranks included; the weight
      counts tokens. Two names for one thing here: they differ where means of means are taken.
    - "dr_grpo": the sum over tokens, over completions times `max_completion_length`, a constant.

    A completion of which no token counts is left out of all of them, their weights too.

    Args:
        logps: floating [n, length - 1], of the policy that is trained, at the temperature of the sampling.
        behavior_logps: [n, length - 1], of the policy that sampled; a constant. In the first step after
            sampling it may be `mx.stop_gradient(logps)`.
        advantages: [n], a constant; `group_advantages` makes them.
        completion_mask: [n, length - 1], one on the completions' tokens, zero elsewhere, where everything
            else may be infinite or NaN.
        ref_logps: [n, length - 1], of the reference; a constant. Needed if beta is not 0.
        beta: at least 0, the price of divergence from the reference, in units of advantage a nat.
        epsilon: in (0, 1], how far the ratio may fall, and rise unless `epsilon_high` is given.
        epsilon_high: above 0; DAPO suggests 0.28.
        delta: greater than 1 + epsilon_high: a bound on the ratio of tokens that are to become less likely,
            which the objective leaves unbounded. None: no bound.
        loss_type: "grpo", "bnpo", "dr_grpo" or "dapo".
        importance_sampling_level: "token" or "sequence".
        kl_estimator: "k1", "k2" or "k3". All estimate KL(policy || reference) from samples of the policy.
            The gradient of k1, as a loss, is zero on average: it measures and does not pull.
        max_completion_length: above 0, in tokens; needed for "dr_grpo".
        truncated: [n], numbers or booleans: completions cut off before they ended, to be left out.

    Returns:
        `(Mean, metrics)`. Metrics: `ratio`, its mean; `clip_fraction`, the share of ratios that a bound
        holds and that thus have no gradient, both over tokens or, at the level "sequence", completions;
        `kl`, in nats a token, if `ref_logps` is given.

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
    high = epsilon if epsilon_high is None else epsilon_high
    epsilon = checks.number(caller, "epsilon", epsilon, above=0, most=1)
    high = checks.number(caller, "epsilon_high", high, above=0)
    beta = checks.number(caller, "beta", beta, least=0)
    checks.one_of(caller, "loss_type", loss_type, LOSS_TYPES)
    checks.one_of(caller, "importance_sampling_level", importance_sampling_level, LEVELS)
    checks.one_of(caller, "kl_estimator", kl_estimator, KL_ESTIMATORS)
    if delta is not None:
        least = None if isinstance(high, mx.array) else 1 + high
        delta = checks.number(caller, "delta", delta, above=least)
    if loss_type == "dr_grpo":
        if max_completion_length is None:
            raise checks.error(
                caller, "max_completion_length must be given for loss_type 'dr_grpo', got None"
            )
        max_completion_length = checks.number(caller, "max_completion_length", max_completion_length, above=0)
    if ref_logps is None and not (checks.is_number(beta) and beta == 0):
        raise checks.error(caller, f"ref_logps must be given if beta is not 0, got None with beta {beta}")
    mask = token_mask(caller, logps, completion_mask, truncated)
    logps, behavior = constants_beside(caller, mask, logps, behavior_logps=behavior_logps)
    per_row = row_constants(caller, "advantages", advantages, mask.shape[0])
    count = sums.total(mask, -1)

    if importance_sampling_level == "token":
        parts, log_ratio = mask, logps - behavior
    else:
        parts = (count != 0).astype(mx.float32)[:, None]
        log_ratio = sums.total((logps - behavior) * mask, -1, keepdims=True) / _or_one(count)[:, None]
    spread = reduce.keep(parts, mx.broadcast_to(per_row[:, None], parts.shape))
    objective = clipped_objective(log_ratio, spread, epsilon, high, delta)
    metrics = objective.metrics(parts)
    losses = mx.broadcast_to(objective.losses, mask.shape)
    if ref_logps is not None:
        _, ref = constants_beside(caller, mask, logps, ref_logps=ref_logps)
        kl = _kl(ref - logps, kl_estimator)
        metrics["kl"] = Mean.of(mx.stop_gradient(kl), mask)
        if isinstance(beta, mx.array) or beta:
            losses = losses + beta * kl
    return _average(losses, mask, loss_type, max_completion_length), metrics


def _average(
    losses: mx.array, mask: mx.array, loss_type: str, max_completion_length: int | mx.array | None
) -> Mean:
    rows, count = sums.total(losses * mask, -1), sums.total(mask, -1)
    present = sums.total(count != 0)
    if loss_type == "grpo":
        return Mean(sums.total(rows / _or_one(count)), present)
    if loss_type == "dr_grpo" and max_completion_length is not None:
        return Mean(sums.total(rows), present * max_completion_length)
    return Mean(sums.total(rows), sums.total(count))


def _kl(difference: mx.array, estimator: str) -> mx.array:
    """Estimate KL(policy || reference) from `log reference - log policy` of tokens of the policy."""
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return mx.square(difference) / 2
    return mx.expm1(difference) - difference


def _or_one(count: mx.array) -> mx.array:
    return mx.where(count == 0, 1.0, count)


def _groups(caller: str, rewards: mx.array, group_size: int) -> mx.array:
    group_size = checks.integer(caller, "group_size", group_size, least=2)
    if not isinstance(rewards, mx.array):
        raise TypeError(f"{caller}: rewards must be an array, got {type(rewards).__name__}")
    if rewards.ndim != 1 or rewards.size == 0 or rewards.size % group_size:
        raise checks.error(
            caller, f"rewards must be [n] with n a multiple of group_size {group_size}, got {rewards.shape}"
        )
    return rewards.astype(mx.float32).reshape(-1, group_size)


def _centered(groups: mx.array) -> mx.array:
    """Subtract the mean; equal rewards give exact zeros, which rounding of the mean would spoil."""
    equal = groups.max(axis=-1, keepdims=True) == groups.min(axis=-1, keepdims=True)
    # The sum of what float32 holds may be more than it holds; a power of two changes nothing else.
    size = groups.shape[-1]
    shrink = 2.0 ** -size.bit_length()
    return mx.where(equal, 0.0, groups - sums.total(groups * shrink, -1, keepdims=True) / size / shrink)
