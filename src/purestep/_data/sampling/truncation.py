"""Top-k and top-p truncation of a distribution."""

import mlx.core as mx

from purestep._core import checks
from purestep._losses.core import inputs


def truncated_logits(logits: mx.array, *, top_k: int | None = None, top_p: float | None = None) -> mx.array:
    """Set the logits of the tokens that top-k and top-p sampling exclude to minus infinity.

    Top-k keeps the `top_k` largest logits. Top-p then keeps, in the distribution over those, the smallest set
    of most probable tokens whose probabilities sum to at least `top_p`. Equal logits are kept or excluded
    together, so more than `top_k` tokens may remain.

    Args:
        logits: floating [..., vocab], already divided by the temperature.
        top_k: at least 1; a number above the vocabulary, or `None`, keeps everything.
        top_p: in (0, 1]; 1 or `None` keeps everything. The most probable token is always kept.

    Returns:
        Logits in float32, of the same shape.

    Raises:
        ValueError: if an option is out of its range.
        TypeError: if the logits are not floating.

    Reference: nucleus sampling, Holtzman et al., arXiv:1904.09751.

    >>> truncated_logits(mx.array([1.0, 3.0, 2.0]), top_k=2)
    array([-inf, 3, 2], dtype=float32)
    """
    caller = "truncated_logits"
    check_truncation(caller, top_k, top_p)
    inputs.floating(caller, "logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise checks.error(caller, f"logits must be [..., vocab] with vocab >= 1, got {logits.shape}")
    logits = logits.astype(mx.float32)
    if top_k is not None and top_k < logits.shape[-1]:
        logits = _at_least(logits, mx.topk(logits, top_k, axis=-1).min(axis=-1, keepdims=True))
    if top_p is not None and top_p < 1:
        falling = -mx.sort(-logits, axis=-1)
        probabilities = mx.softmax(falling, axis=-1)
        before = mx.cumsum(probabilities, axis=-1) - probabilities
        # The first column is always kept: rounding may make `before` slightly positive and above top_p.
        kept = mx.logical_or(before < top_p, mx.arange(falling.shape[-1]) == 0)
        logits = _at_least(logits, mx.where(kept, falling, mx.inf).min(axis=-1, keepdims=True))
    return logits


def check_truncation(caller: str, top_k: int | None, top_p: float | None) -> None:
    """Raise an error if top-k or top-p is out of its range."""
    if top_k is not None:
        top_k = checks.integer(caller, "top_k", top_k, least=1)
    if top_p is not None:
        top_p = checks.number(caller, "top_p", top_p, above=0, most=1)


def _at_least(logits: mx.array, threshold: mx.array) -> mx.array:
    return mx.where(logits >= threshold, logits, -mx.inf)
