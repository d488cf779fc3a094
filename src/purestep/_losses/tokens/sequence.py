"""Shifted tokens, masks and log-probabilities of sequences.

Log-probabilities and masks are [..., length - 1]; entry `t` belongs to the token at position `t + 1`.
"""

from collections.abc import Sequence

import mlx.core as mx

from purestep._core import checks, sums
from purestep._losses.core import inputs, numerics, weighting
from purestep._losses.core.fused import fused_cross_entropy


def shift(tokens: mx.array) -> tuple[mx.array, mx.array]:
    """Split tokens into the inputs of a causal model and its targets.

    Args:
        tokens: [..., length], at least two; of any dtype, so that segment ids can be split too.

    Returns:
        `(inputs, targets)`, all tokens but the last and all but the first, both [..., length - 1].

    Raises:
        ValueError: if there are fewer than two tokens.

    >>> shift(mx.array([[5, 6, 7]]))
    (array([[5, 6]], dtype=int32), array([[6, 7]], dtype=int32))
    """
    inputs.array("shift", "tokens", tokens)
    if tokens.ndim == 0 or tokens.shape[-1] < 2:
        raise checks.error("shift", f"tokens must be [..., length] with length >= 2, got {tokens.shape}")
    return tokens[..., :-1], tokens[..., 1:]


def prompt_mask(tokens: mx.array, prompt_lengths: int | mx.array) -> mx.array:
    """Mark the targets that belong to the prompt: those before position `prompt_lengths`.

    Args:
        tokens: integer [batch, length].
        prompt_lengths: integer [batch], or one number for all rows: the number of leading tokens that
            belong to the prompt, including padding on the left.

    Returns:
        float32 [batch, length - 1], one number for each target, as `shift` splits tokens.

    Raises:
        ValueError: if the shapes do not fit or a Python number is negative.
        TypeError: if tokens or lengths are not integers.

    >>> prompt_mask(mx.array([[5, 6, 7, 8]]), mx.array([2]))
    array([[1, 0, 0]], dtype=float32)
    """
    caller = "prompt_mask"
    _check_tokens(caller, tokens)
    inside = mx.arange(1, tokens.shape[-1]) < _lengths(caller, "prompt_lengths", prompt_lengths, tokens)
    return mx.broadcast_to(inside, tokens[..., 1:].shape).astype(mx.float32)


def completion_mask(
    tokens: mx.array,
    prompt_lengths: int | mx.array,
    *,
    lengths: int | mx.array | None = None,
    stop_tokens: int | Sequence[int] | None = None,
) -> mx.array:
    """Mark the targets of the completion: after the prompt, before padding, up to the first stop token.

    The first stop token of the completion is included, because the model decides to stop. Tokens after it
    are not. Stop tokens in the prompt are ignored.

    Args:
        tokens: integer [batch, length].
        prompt_lengths: as in `prompt_mask`.
        lengths: integer [batch], or one number: the number of leading tokens that are not padding,
            including the prompt. `None`: all tokens, up to a stop token.
        stop_tokens: the token, or tokens, that end a completion. `None`: there are none.

    Returns:
        float32 [batch, length - 1], one number for each target, as `shift` splits tokens.

    Raises:
        ValueError: if the shapes do not fit or a Python number is negative.
        TypeError: if tokens, lengths or stop tokens are not integers.

    >>> tokens = mx.array([[5, 6, 7, 9, 9], [5, 9, 8, 8, 0]])
    >>> completion_mask(tokens, mx.array([2, 2]), lengths=mx.array([5, 4]), stop_tokens=9)
    array([[0, 1, 1, 0],
           [0, 1, 1, 0]], dtype=float32)
    """
    caller = "completion_mask"
    inside = _completion(caller, tokens, prompt_lengths, lengths)
    if stop_tokens is not None:
        stops = mx.logical_and(inside, _is_stop(caller, tokens[..., 1:], stop_tokens)).astype(mx.int32)
        inside = mx.logical_and(inside, mx.cumsum(stops, axis=-1) - stops == 0)
    return inside.astype(mx.float32)


def truncation_mask(
    tokens: mx.array,
    prompt_lengths: int | mx.array,
    stop_tokens: int | Sequence[int],
    *,
    lengths: int | mx.array | None = None,
) -> mx.array:
    """Mark the rows whose completion was cut off, which means that it has no stop token.

    Args:
        tokens: integer [batch, length].
        prompt_lengths: as in `completion_mask`.
        stop_tokens: the token, or tokens, that end a completion.
        lengths: as in `completion_mask`.

    Returns:
        float32 [batch], 1 for a truncated row.

    Raises:
        ValueError, TypeError: as `completion_mask`.

    >>> truncation_mask(mx.array([[5, 6, 9], [9, 6, 7]]), 1, 9)
    array([0, 1], dtype=float32)
    """
    caller = "truncation_mask"
    inside = _completion(caller, tokens, prompt_lengths, lengths)
    stops = mx.logical_and(inside, _is_stop(caller, tokens[..., 1:], stop_tokens))
    return mx.logical_not(mx.any(stops, axis=-1)).astype(mx.float32)


def token_logps(
    logits: mx.array,
    targets: mx.array,
    *,
    temperature: float | mx.array = 1.0,
    mask: mx.array | None = None,
) -> mx.array:
    """Return the log-probability of each target, in nats.

    For one target `t`, in float32 for any dtype of the logits:

        logits[t] / temperature - logsumexp(logits / temperature)

    For sampled tokens, use the temperature of the sampling: only then is this the distribution from which
    they were drawn. A target outside [0, vocab) has a log-probability of NaN, and makes a loss that includes
    it NaN. If a mask skips it later, its loss and its gradient are zero.

    Args:
        logits: floating [..., vocab], unnormalized; those at position `t` predict `targets[..., t]`.
        targets: integer [...], usually `tokens[..., 1:]`.
        temperature: above 0, a number, or a 0-d array, which is not checked.
        mask: [...] or a shape that broadcasts to it. Where it is zero, the log-probability and its gradient
            are zero. It is needed only if logits may be infinite or NaN there, because the functions that use
            log-probabilities take masks too. `None`: no mask.

    Returns:
        float32 [...].

    Raises:
        ValueError: if the shapes do not fit, or the temperature is not above 0.
        TypeError: if targets are not integers or logits not floating.

    >>> token_logps(mx.array([[[0.0, 0.0], [2.0, 0.0]]]), mx.array([[1, 0]]), temperature=2.0)
    array([[-0.693147, -0.313262]], dtype=float32)
    """
    caller = "token_logps"
    temperature = checks.number(caller, "temperature", temperature, above=0)
    inputs.labelled(caller, logits, targets)
    inputs.floating(caller, "logits", logits)
    inputs.integers(caller, "targets", targets)
    kept = weighting.broadcast(caller, mask, targets.shape, "targets'", "mask")
    if targets.size == 0:
        return sums.total(logits, -1)
    targets = inputs.signed(targets)
    valid = mx.logical_and(targets >= 0, targets < logits.shape[-1])
    logits = weighting.masked(kept, logits.astype(mx.float32))
    logits = numerics.shifted(logits)[0] / temperature
    logps = -fused_cross_entropy(logits, mx.where(valid, targets, 0))
    # mx.where, not a product with NaN: if a mask skips the target later, its gradient must be 0, not 0 * NaN.
    return weighting.masked(kept, mx.where(valid, logps, mx.nan))


def sequence_logps(token_logps: mx.array, mask: mx.array, *, average: bool = False) -> mx.array:
    """Sum the log-probabilities of each sequence over the tokens of a mask.

        sum_t mask[t] * token_logps[t]          (divided by sum_t mask[t] if average)

    Args:
        token_logps: floating [..., length - 1], as `token_logps` returns them.
        mask: [..., length - 1], numbers or booleans: weight of each token. Where it is zero, the
            log-probability may be infinite or NaN.
        average: divide by the sum of the mask, as IPO, ORPO and SimPO require.

    Returns:
        float32 [...]; zero, with a gradient of zero, for a sequence whose mask is zero.

    Raises:
        ValueError: if the shapes differ.
        TypeError: if the log-probabilities are not floating.

    >>> sequence_logps(mx.array([[-1.0, -2.0, -9.0]]), mx.array([[1.0, 1.0, 0.0]]), average=True)
    array([-1.5], dtype=float32)
    """
    caller = "sequence_logps"
    inputs.floating(caller, "token_logps", token_logps)
    inputs.same_shape(caller, "mask", mask, "token_logps", token_logps)
    if token_logps.ndim == 0:
        raise checks.error(caller, "token_logps must be [..., length - 1], got a scalar")
    mask = mask.astype(mx.float32)
    total = sums.total(weighting.masked(mask, token_logps.astype(mx.float32)) * mask, -1)
    if not average:
        return total
    count = sums.total(mask, -1)
    return total / mx.where(count == 0, 1.0, count)


def _completion(
    caller: str, tokens: mx.array, prompt_lengths: int | mx.array, lengths: int | mx.array | None
) -> mx.array:
    _check_tokens(caller, tokens)
    positions = mx.arange(1, tokens.shape[-1])
    inside = positions >= _lengths(caller, "prompt_lengths", prompt_lengths, tokens)
    if lengths is not None:
        inside = mx.logical_and(inside, positions < _lengths(caller, "lengths", lengths, tokens))
    return mx.broadcast_to(inside, tokens[..., 1:].shape)


def _is_stop(caller: str, targets: mx.array, stop_tokens: int | Sequence[int]) -> mx.array:
    stops = (stop_tokens,) if isinstance(stop_tokens, int) else tuple(stop_tokens)
    if not stops:
        raise checks.error(caller, "stop_tokens must name at least one token, got none")
    for stop in stops:
        checks.integer(caller, "stop_tokens", stop, least=0)
    targets = inputs.signed(targets)
    found = targets == stops[0]
    for stop in stops[1:]:
        found = mx.logical_or(found, targets == stop)
    return found


def _check_tokens(caller: str, tokens: mx.array) -> None:
    inputs.integers(caller, "tokens", tokens)
    if tokens.ndim == 0 or tokens.shape[-1] < 2:
        raise checks.error(caller, f"tokens must be [batch, length] with length >= 2, got {tokens.shape}")


def _lengths(caller: str, name: str, lengths: int | mx.array, tokens: mx.array) -> mx.array | int:
    if not isinstance(lengths, mx.array):
        checks.integer(caller, name, lengths, least=0)
        return lengths
    inputs.integers(caller, name, lengths)
    if lengths.ndim and lengths.shape != tokens.shape[:-1]:
        raise checks.error(caller, f"{name} must have shape {tokens.shape[:-1]}, got {lengths.shape}")
    return lengths[..., None]
