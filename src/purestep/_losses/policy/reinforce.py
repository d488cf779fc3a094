"""REINFORCE: the plain policy gradient, for samples of the current policy."""

import mlx.core as mx

from purestep._core import sums
from purestep._core.mean import Mean
from purestep._losses.core import weighting
from purestep._losses.policy.surrogate import row_constants, token_mask


def reinforce_loss(
    logps: mx.array, advantages: mx.array, completion_mask: mx.array, *, truncated: mx.array | None = None
) -> Mean:
    """Return a loss with the REINFORCE gradient, for completions of the current policy.

    The loss of one completion is `-A * sum_t mask[t] * logp[t]`. With `leave_one_out_advantages` this is
    RLOO. The loss does not correct for samples of an older policy: take one step for each batch of samples,
    or use `grpo_loss`.

    Args:
        logps: floating [n, length - 1], at the sampling temperature.
        advantages: floating [n]; no gradient flows to them.
        completion_mask: as in `grpo_loss`.
        truncated: as in `grpo_loss`.

    Returns:
        A `Mean` over completions; those without tokens in the mask are skipped. Only its gradient has a
        meaning, not its value.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if log-probabilities or advantages are not floating.

    Reference: Williams, 1992; RLOO, Ahmadian et al., arXiv:2402.14740.

    >>> reinforce_loss(mx.array([[-1.0, -2.0]]), mx.array([0.5]), mx.array([[1.0, 1.0]])).value
    array(1.5, dtype=float32)
    """
    caller = "reinforce_loss"
    mask = token_mask(caller, logps, completion_mask, truncated)
    present = (sums.total(mask, -1) != 0).astype(mx.float32)
    rows = sums.total(weighting.masked(mask, logps.astype(mx.float32)) * mask, -1)
    advantages = row_constants(caller, "advantages", advantages, mask.shape[0])
    return Mean.of(-weighting.masked(present, advantages) * rows, present)
