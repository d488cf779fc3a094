"""What the policy losses share: clipped ratios, and what counts of completions and what does not."""

from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core import reduce


class Objective(NamedTuple):
    """What clipping made of the ratios: losses, the ratios, and ones where a bound holds."""

    losses: mx.array
    ratio: mx.array
    clipped: mx.array

    def metrics(self, weights: mx.array) -> dict[str, Mean]:
        """Return the mean ratio and the share that is clipped."""
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
    """Return `-min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)`, all shapes being one.

    The branch is decided first and the exponential taken of what is not clipped only: a clipped ratio that
    has overflowed would otherwise come back through the gradient as zero times infinity.
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
    """Return what each token counts, float32 [n, length - 1]: nothing in the rows that were cut off."""
    reduce.floating(caller, "logps", logps)
    if logps.ndim != 2:
        raise checks.error(caller, f"logps must be [n, length - 1], got {logps.shape}")
    reduce.same_shape(caller, "completion_mask", completion_mask, "logps", logps)
    mask = completion_mask.astype(mx.float32)
    if truncated is None:
        return mask
    reduce.array(caller, "truncated", truncated)
    if truncated.shape != logps.shape[:1]:
        raise checks.error(caller, f"truncated must have shape {logps.shape[:1]}, got {truncated.shape}")
    return mx.where(truncated.astype(mx.bool_)[:, None], 0.0, mask)


def constants_beside(
    caller: str, mask: mx.array, values: mx.array, **constants: mx.array
) -> tuple[mx.array, ...]:
    """Return values, and constants of their shape without a gradient, in float32, zero where the mask is."""
    kept = [reduce.keep(mask, values.astype(mx.float32))]
    for name, constant in constants.items():
        reduce.same_shape(caller, name, constant, "logps", values)
        reduce.floating(caller, name, constant)
        kept.append(reduce.keep(mask, mx.stop_gradient(constant.astype(mx.float32))))
    return tuple(kept)


def row_constants(caller: str, name: str, values: mx.array, rows: int) -> mx.array:
    reduce.floating(caller, name, values)
    if values.shape != (rows,):
        raise checks.error(caller, f"{name} must have shape ({rows},), one for each row, got {values.shape}")
    return mx.stop_gradient(values.astype(mx.float32))
