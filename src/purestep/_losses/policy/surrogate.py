"""The clipped objective of the policy losses, and the masks of their completions."""

from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core import inputs, weighting


class Objective(NamedTuple):
    """Losses, ratios, and whether each ratio is at a bound."""

    losses: mx.array
    ratio: mx.array
    clipped: mx.array

    def metrics(self, weights: mx.array) -> dict[str, Mean]:
        """Return the mean ratio and the fraction of clipped ratios."""
        return {
            "ratio": Mean.of(self.ratio, weights),
            "clip_fraction": Mean.of(self.clipped.astype(mx.float32), weights),
        }


def clipped_objective(
    log_ratio: mx.array,
    advantages: mx.array,
    low: float | mx.array,
    high: float | mx.array,
    delta: float | mx.array | None = None,
) -> Objective:
    """Return `-min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)` for arrays of one shape.

    The differentiable exponential is computed only for ratios that are not clipped. A clipped ratio that has
    overflowed would otherwise give a gradient of zero times infinity.
    """
    ratio = mx.exp(mx.stop_gradient(log_ratio))
    rising = mx.logical_and(advantages > 0, ratio > 1 + high)
    falling = mx.logical_and(advantages < 0, ratio < 1 - low)
    bound, clipped = mx.where(rising, 1 + high, 1 - low), mx.logical_or(rising, falling)
    if delta is not None:
        capped = mx.logical_and(advantages < 0, ratio > delta)
        bound, clipped = mx.where(capped, delta, bound), mx.logical_or(clipped, capped)
    still = mx.logical_or(clipped, advantages == 0)
    losses = -advantages * mx.where(still, bound, mx.exp(mx.where(still, 0.0, log_ratio)))
    return Objective(losses, ratio, clipped)


def token_mask(
    caller: str, logps: mx.array, completion_mask: mx.array, truncated: mx.array | None = None
) -> mx.array:
    """Return the weight of each token, float32 [n, length - 1]; rows in `truncated` have weight 0."""
    inputs.floating(caller, "logps", logps)
    if logps.ndim != 2:
        raise checks.error(caller, f"logps must be [n, length - 1], got {logps.shape}")
    inputs.same_shape(caller, "completion_mask", completion_mask, "logps", logps)
    mask = completion_mask.astype(mx.float32)
    if truncated is None:
        return mask
    inputs.array(caller, "truncated", truncated)
    if truncated.shape != logps.shape[:1]:
        raise checks.error(caller, f"truncated must have shape {logps.shape[:1]}, got {truncated.shape}")
    return mx.where(truncated.astype(mx.bool_)[:, None], 0.0, mask)


def constants_beside(
    caller: str, mask: mx.array, values: mx.array, **constants: mx.array
) -> tuple[mx.array, ...]:
    """Return values, and constants of their shape without a gradient, in float32; 0 where the mask is 0."""
    kept = [weighting.masked(mask, values.astype(mx.float32))]
    for name, constant in constants.items():
        inputs.same_shape(caller, name, constant, "logps", values)
        inputs.floating(caller, name, constant)
        kept.append(weighting.masked(mask, mx.stop_gradient(constant.astype(mx.float32))))
    return tuple(kept)


def row_constants(caller: str, name: str, values: mx.array, rows: int) -> mx.array:
    """Return one number for each row, in float32 without a gradient."""
    inputs.floating(caller, name, values)
    if values.shape != (rows,):
        raise checks.error(caller, f"{name} must have shape ({rows},), one for each row, got {values.shape}")
    return mx.stop_gradient(values.astype(mx.float32))
