"""Proximal policy optimization: advantages from a value function, clipped policy and value losses."""

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core import reduce
from purestep._losses.policy.surrogate import clipped_objective, constants_beside, token_mask


def generalized_advantages(
    rewards: mx.array,
    values: mx.array,
    completion_mask: mx.array,
    *,
    gamma: float | mx.array = 1.0,
    lam: float | mx.array = 0.95,
) -> tuple[mx.array, mx.array]:
    """Spread the rewards of each completion over its tokens, measured against a value function.

        delta[t] = reward[t] + gamma * value[t + 1] - value[t]
        advantage[t] = delta[t] + gamma * lam * advantage[t + 1];    return[t] = advantage[t] + value[t]

    The token after the last of a completion has value and advantage zero: an end is an end. A gap in the
    mask ends a completion as well.

    Args:
        rewards: [n, length - 1], of each token; often zero but for the last, less a price of divergence.
        values: floating [n, length - 1], predicted before each token.
        completion_mask: [n, length - 1], one on the completions' tokens, zero elsewhere, where rewards and
            values may be infinite or NaN.
        gamma: in [0, 1], what a reward loses by each token of waiting.
        lam: in [0, 1], between the advantage of one step (0) and that of the whole return (1).

    Returns:
        `(advantages, returns)`, float32 [n, length - 1], zero where the mask is, without a gradient.

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
    reduce.floating(caller, "values", values)
    if values.ndim != 2:
        raise checks.error(caller, f"values must be [n, length - 1], got {values.shape}")
    reduce.same_shape(caller, "rewards", rewards, "values", values)
    reduce.same_shape(caller, "completion_mask", completion_mask, "values", values)
    mask = (completion_mask != 0).astype(mx.float32)
    values = reduce.keep(mask, values.astype(mx.float32))
    sums = reduce.keep(mask, rewards.astype(mx.float32)) + gamma * _earlier(values, 1) - values
    sums, factors = mask * sums, gamma * lam * mask * _earlier(mask, 1)
    # sums[t] covers the deltas of t, ..., t + reach - 1. Doubling the reach takes log2(length) operations,
    # where the recursion as it is written takes `length`.
    reach = 1
    while reach < mask.shape[1]:
        sums = sums + factors * _earlier(sums, reach)
        factors = factors * _earlier(factors, reach)
        reach *= 2
    return mx.stop_gradient(sums), mx.stop_gradient(sums + values)


def ppo_loss(
    logps: mx.array,
    behavior_logps: mx.array,
    advantages: mx.array,
    completion_mask: mx.array,
    *,
    values: mx.array | None = None,
    behavior_values: mx.array | None = None,
    returns: mx.array | None = None,
    cliprange: float | mx.array = 0.2,
    cliprange_value: float | mx.array = 0.2,
    vf_coef: float | mx.array = 0.1,
    truncated: mx.array | None = None,
) -> tuple[Mean, dict[str, Mean]]:
    """Return the clipped policy objective, plus the clipped value loss if there are values.

    For one token, with `ratio = exp(logp - behavior_logp)` and `near = clip(value, behavior_value -
    cliprange_value, behavior_value + cliprange_value)`:

        -min(ratio * A, clip(ratio, 1 - cliprange, 1 + cliprange) * A)
        + vf_coef * max((value - return)**2, (near - return)**2) / 2

    Args:
        logps: floating [n, length - 1], of the policy that is trained, at the temperature of the sampling.
        behavior_logps: [n, length - 1], of the policy that sampled; a constant.
        advantages: [n, length - 1], a constant; `generalized_advantages` makes them, and the returns.
        completion_mask: [n, length - 1], one on the completions' tokens, zero elsewhere, where everything
            else may be infinite or NaN.
        values: floating [n, length - 1], predicted now; with `behavior_values` and `returns`, or none of
            the three.
        behavior_values: [n, length - 1], predicted at sampling; a constant.
        returns: [n, length - 1], what the values should have been; a constant.
        cliprange: in (0, 1], how far the ratio may go.
        cliprange_value: above 0, how far the value may go, in units of reward.
        vf_coef: at least 0, the share of the value loss.
        truncated: [n], numbers or booleans: completions cut off before they ended, to be left out.

    Returns:
        `(Mean, metrics)`, all over tokens: `ratio`; `clip_fraction`, the share of ratios that a bound
        holds; with values also `value_loss` and `value_clip_fraction`.

    Raises:
        ValueError: if shapes do not fit, an option is out of its range, or only some of values,
            behavior_values and returns are given.
        TypeError: if one of the arrays is not floating.

    Reference: Schulman et al., arXiv:1707.06347.

    >>> ones = mx.ones((1, 2))
    >>> valued = {"values": ones, "behavior_values": ones, "returns": 3 * ones}
    >>> loss, metrics = ppo_loss(-ones, -ones, ones, ones, **valued)
    >>> loss.value, metrics["value_loss"].value
    (array(-0.8, dtype=float32), array(2, dtype=float32))
    """
    caller = "ppo_loss"
    cliprange = checks.number(caller, "cliprange", cliprange, above=0, most=1)
    cliprange_value = checks.number(caller, "cliprange_value", cliprange_value, above=0)
    vf_coef = checks.number(caller, "vf_coef", vf_coef, least=0)
    mask = token_mask(caller, logps, completion_mask, truncated)
    logps, behavior, advantages = constants_beside(
        caller, mask, logps, behavior_logps=behavior_logps, advantages=advantages
    )
    objective = clipped_objective(logps - behavior, advantages, cliprange, cliprange)
    losses, metrics = objective.losses, objective.metrics(mask)
    given = [x is not None for x in (values, behavior_values, returns)]
    if any(given) and not all(given):
        raise checks.error(caller, "values, behavior_values and returns must be given together")
    if values is not None and behavior_values is not None and returns is not None:
        reduce.floating(caller, "values", values)
        reduce.same_shape(caller, "values", values, "logps", logps)
        values, before, returns = constants_beside(
            caller, mask, values, behavior_values=behavior_values, returns=returns
        )
        # Between bounds, not `before` plus a clipped difference: rounding would move a value that is within
        # them, and where it moves it away from the return, the maximum would take the gradient away.
        near = mx.clip(mx.stop_gradient(values), before - cliprange_value, before + cliprange_value)
        free, bounded = mx.square(values - returns), mx.square(near - returns)
        held = bounded > mx.stop_gradient(free)
        value_losses = mx.where(held, bounded, free) / 2
        metrics["value_loss"] = Mean.of(mx.stop_gradient(value_losses), mask)
        metrics["value_clip_fraction"] = Mean.of(held.astype(mx.float32), mask)
        losses = losses + vf_coef * value_losses
    return Mean.of(losses, mask), metrics


def _earlier(values: mx.array, steps: int) -> mx.array:
    """Move every column `steps` to the left, zeros coming in."""
    return mx.pad(values[:, steps:], [(0, 0), (0, min(steps, values.shape[1]))])
