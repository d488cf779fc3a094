"""REINFORCE: the policy gradient as it stands, for samples of the current policy."""

import mlx.core as mx

from purestep._core import sums
from purestep._core.mean import Mean
from purestep._losses.core import reduce
from purestep._losses.policy.surrogate import row_constants, token_mask


def reinforce_loss(
    logps: mx.array, advantages: mx.array, completion_mask: mx.array, *, truncated: mx.array | None = None
) -> Mean:
    """Return the loss whose gradient is REINFORCE's, for completions of the policy as it is.

    For one completion: `-A * sum_t mask[t] * logp[t]`. With `leave_one_out_advantages` this is RLOO. It
    corrects for no staleness: take one step for each batch of samples, or take `grpo_loss`.

    Args:
        logps: floating [n, length - 1], at the temperature of the sampling.
        advantages: [n], a constant.
        completion_mask: [n, length - 1], one on the completions' tokens, zero elsewhere.
        truncated: [n], numbers or booleans: completions cut off before they ended, to be left out.

    Returns:
        A `Mean` over completions; those of which no token counts are left out. Its value is of no interest,
        only its gradient.

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
    rows = sums.total(reduce.keep(mask, logps.astype(mx.float32)) * mask, -1)
    return Mean.of(
        -reduce.keep(present, row_constants(caller, "advantages", advantages, mask.shape[0])) * rows, present
    )
