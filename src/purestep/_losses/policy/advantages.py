"""Advantages: rewards relative to other completions of a prompt, or to a value function."""

import mlx.core as mx

from purestep._core import checks, sums
from purestep._losses.core import inputs, weighting


def group_advantages(
    rewards: mx.array, group_size: int, *, scale_rewards: bool = True, eps: float | mx.array = 1e-4
) -> mx.array:
    """Return each reward relative to the rewards of its group.

        (reward - mean(group)) / (std(group) + eps)

    The standard deviation divides by `group_size - 1`. If all rewards of a group are equal, its advantages
    are exactly zero.

    Args:
        rewards: [n], one for each completion; the completions of one prompt are neighbours.
        group_size: at least 2, number of completions of a prompt; divides n.
        scale_rewards: divide by the standard deviation. Dr. GRPO does not, because the division favours
            prompts that are almost always or almost never solved.
        eps: above 0, added to the standard deviation.

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
        # Numbers are scaled by the largest: the square of 1e20 overflows float32.
        largest = mx.abs(centered).max(axis=-1, keepdims=True)
        units = centered / mx.where(largest == 0, 1.0, largest)
        deviation = largest * mx.sqrt(sums.total(mx.square(units), -1, keepdims=True) / (group_size - 1))
        centered = centered / (deviation + eps)
    return mx.stop_gradient(centered.reshape(rewards.shape))


def leave_one_out_advantages(rewards: mx.array, group_size: int) -> mx.array:
    """Return each reward minus the mean of the other rewards of its group.

        reward - sum(others of the group) / (group_size - 1)

    This baseline does not depend on the completion itself, so `reinforce_loss` with these advantages has an
    unbiased gradient.

    Args:
        rewards: as in `group_advantages`.
        group_size: as in `group_advantages`.

    Returns:
        float32 [n], without a gradient; exactly zero if the rewards of a group are equal.

    Raises:
        ValueError: if the rewards are not [n] or do not divide into groups.

    Reference: RLOO, Ahmadian et al., arXiv:2402.14740.

    >>> leave_one_out_advantages(mx.array([3.0, 0.0, 0.0]), 3)
    array([3, -1.5, -1.5], dtype=float32)
    """
    centered = _centered(_groups("leave_one_out_advantages", rewards, group_size))
    return mx.stop_gradient((centered * (group_size / (group_size - 1))).reshape(rewards.shape))


def generalized_advantages(
    rewards: mx.array,
    values: mx.array,
    completion_mask: mx.array,
    *,
    gamma: float | mx.array = 1.0,
    lam: float | mx.array = 0.95,
) -> tuple[mx.array, mx.array]:
    """Return the generalized advantage estimate of each token, and the returns that values should predict.

        delta[t] = reward[t] + gamma * value[t + 1] - value[t]
        advantage[t] = delta[t] + gamma * lam * advantage[t + 1];    return[t] = advantage[t] + value[t]

    After the last token of a completion, value and advantage are zero. A gap in the mask ends a completion
    too.

    Args:
        rewards: [n, length - 1], reward of each token; often a KL penalty, plus the reward of the completion
            at its last token.
        values: floating [n, length - 1], predicted before each token.
        completion_mask: [n, length - 1], 1 on the tokens of completions and 0 elsewhere, where rewards and
            values may be infinite or NaN.
        gamma: in [0, 1], discount factor of a token.
        lam: in [0, 1]; 0 gives the advantage of one step, 1 the advantage of the whole return.

    Returns:
        `(advantages, returns)`, float32 [n, length - 1], zero where the mask is zero, without a gradient.

    Raises:
        ValueError: if the shapes differ, or gamma or lam are out of range.
        TypeError: if the values are not floating.

    Reference: Schulman et al., arXiv:1506.02438.

    >>> rewards, values = mx.array([[0.0, 1.0, 0.0]]), mx.array([[0.5, 0.5, 0.5]])
    >>> generalized_advantages(rewards, values, mx.array([[1, 1, 0]]), lam=0.5)[0]
    array([[0.25, 0.5, 0]], dtype=float32)
    """
    caller = "generalized_advantages"
    gamma = checks.number(caller, "gamma", gamma, least=0, most=1)
    lam = checks.number(caller, "lam", lam, least=0, most=1)
    inputs.floating(caller, "values", values)
    if values.ndim != 2:
        raise checks.error(caller, f"values must be [n, length - 1], got {values.shape}")
    inputs.same_shape(caller, "rewards", rewards, "values", values)
    inputs.same_shape(caller, "completion_mask", completion_mask, "values", values)
    mask = (completion_mask != 0).astype(mx.float32)
    values = weighting.masked(mask, values.astype(mx.float32))
    deltas = weighting.masked(mask, rewards.astype(mx.float32)) + gamma * _later(values, 1) - values
    advantages, factors = mask * deltas, gamma * lam * mask * _later(mask, 1)
    # advantages[t] covers the deltas of t, ..., t + reach - 1. Doubling the reach takes log2(length)
    # operations; the recursion as written above takes `length`.
    reach = 1
    while reach < mask.shape[1]:
        advantages = advantages + factors * _later(advantages, reach)
        factors = factors * _later(factors, reach)
        reach *= 2
    return mx.stop_gradient(advantages), mx.stop_gradient(advantages + values)


def _later(values: mx.array, steps: int) -> mx.array:
    """Return at each column the value `steps` columns later, and zeros after the last column."""
    return mx.pad(values[:, steps:], [(0, 0), (0, min(steps, values.shape[1]))])


def _groups(caller: str, rewards: mx.array, group_size: int) -> mx.array:
    """Return the rewards in float32 [groups, group_size]."""
    group_size = checks.integer(caller, "group_size", group_size, least=2)
    inputs.array(caller, "rewards", rewards)
    if rewards.ndim != 1 or rewards.size == 0 or rewards.size % group_size:
        raise checks.error(
            caller, f"rewards must be [n] with n a multiple of group_size {group_size}, got {rewards.shape}"
        )
    return rewards.astype(mx.float32).reshape(-1, group_size)


def _centered(groups: mx.array) -> mx.array:
    """Subtract the mean of each group; equal rewards give exact zeros, despite the rounding of the mean."""
    equal = groups.max(axis=-1, keepdims=True) == groups.min(axis=-1, keepdims=True)
    # The sum of large rewards could overflow, so they are scaled first, by a power of two to stay exact.
    size = groups.shape[-1]
    shrink = 2.0 ** -size.bit_length()
    return mx.where(equal, 0.0, groups - sums.total(groups * shrink, -1, keepdims=True) / size / shrink)
