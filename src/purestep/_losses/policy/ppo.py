"""Proximal policy optimization: the clipped policy and value losses."""

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core import inputs
from purestep._losses.policy.surrogate import clipped_objective, constants_beside, token_mask


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
    """Return the clipped policy objective, plus the clipped value loss if values are given.

    The loss of one token, with `ratio = exp(logp - behavior_logp)` and `near = clip(value, behavior_value -
    cliprange_value, behavior_value + cliprange_value)`:

        -min(ratio * A, clip(ratio, 1 - cliprange, 1 + cliprange) * A)
        + vf_coef * max((value - return)**2, (near - return)**2) / 2

    Args:
        logps: as in `grpo_loss`.
        behavior_logps: as in `grpo_loss`.
        advantages: [n, length - 1]; no gradient flows to them. See `generalized_advantages`.
        completion_mask: as in `grpo_loss`.
        values: floating [n, length - 1], predicted now; requires `behavior_values` and `returns`.
        behavior_values: [n, length - 1], predicted at sampling; no gradient flows to them.
        returns: [n, length - 1], targets of the values; no gradient flows to them. `generalized_advantages`
            returns them too.
        cliprange: in (0, 1], how far the ratio may move from 1.
        cliprange_value: above 0, how far the value may move from `behavior_value`, in units of reward.
        vf_coef: at least 0, factor of the value loss.
        truncated: as in `grpo_loss`.

    Returns:
        `(Mean, metrics)` over tokens. The metrics are `ratio`; `clip_fraction`, the fraction of ratios at a
        bound; with values also `value_loss` and `value_clip_fraction`, the fraction of values whose loss is
        that of `near`.

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
        inputs.floating(caller, "values", values)
        inputs.same_shape(caller, "values", values, "logps", logps)
        values, before, returns = constants_beside(
            caller, mask, values, behavior_values=behavior_values, returns=returns
        )
        value_losses, clipped = _value_losses(values, before, returns, cliprange_value)
        metrics["value_loss"] = Mean.of(mx.stop_gradient(value_losses), mask)
        metrics["value_clip_fraction"] = Mean.of(clipped.astype(mx.float32), mask)
        losses = losses + vf_coef * value_losses
    return Mean.of(losses, mask), metrics


def _value_losses(
    values: mx.array, before: mx.array, returns: mx.array, cliprange: float | mx.array
) -> tuple[mx.array, mx.array]:
    """Return the loss of each value, and whether the clipped value has the larger error."""
    # `before` plus a clipped difference would round a value that is within the bounds. If rounding moved it
    # away from the return, the maximum would remove its gradient.
    near = mx.clip(mx.stop_gradient(values), before - cliprange, before + cliprange)
    free, bounded = mx.square(values - returns), mx.square(near - returns)
    clipped = bounded > mx.stop_gradient(free)
    return mx.where(clipped, bounded, free) / 2, clipped
