"""Rows that hold several sequences: their segments, positions, and masks for attention and loss.

Segment ids describe a row, integer [batch, length]: a positive id on every token of a sequence, 0 on padding.
A new sequence begins where the id changes, so two sequences may share an id if another one is between them.
"""

import mlx.core as mx

from purestep._core import checks
from purestep._losses.core import inputs


def packed_segments(tokens: mx.array, separator: int, *, padding: int | None = None) -> mx.array:
    """Number the sequences of rows in which a separator ends each sequence.

    Args:
        tokens: integer [batch, length].
        separator: the token that ends a sequence, and belongs to it.
        padding: the token that fills the rest of a row; it gets segment 0. `None`: there is no padding. If
            it equals the separator, a separator that directly follows another is padding.

    Returns:
        int32 [batch, length], counting from 1 in each row; 0 on padding.

    Raises:
        ValueError, TypeError: if tokens are not integers [batch, length], or separator or padding is not an
            integer of at least 0.

    >>> packed_segments(mx.array([[5, 9, 6, 7, 9, 0]]), separator=9, padding=0)
    array([[1, 1, 2, 2, 2, 0]], dtype=int32)
    """
    caller = "packed_segments"
    _check(caller, "tokens", tokens)
    separator = checks.integer(caller, "separator", separator, least=0)
    tokens = inputs.signed(tokens)
    ends = (tokens == separator).astype(mx.int32)
    segments = mx.cumsum(ends, axis=-1) - ends + 1
    if padding is None:
        return segments
    padding = checks.integer(caller, "padding", padding, least=0)
    filler = tokens == padding
    if padding == separator:
        follows = mx.concatenate([mx.zeros_like(ends[..., :1]), ends[..., :-1]], axis=-1)
        filler = mx.logical_and(filler, follows == 1)
    return mx.where(filler, 0, segments)


def packed_loss_mask(segments: mx.array) -> mx.array:
    """Mark the targets that belong to the same sequence as the token before them.

    The first token of a sequence is not a target, because the token before it belongs to another sequence.
    Padding is not a target either.

    Args:
        segments: integer [batch, length], 0 on padding.

    Returns:
        float32 [batch, length - 1], one number for each target, as `shift` splits tokens.

    Raises:
        ValueError, TypeError: if segments are not an integer [batch, length].

    >>> packed_loss_mask(mx.array([[1, 1, 2, 2, 0, 0]]))
    array([[1, 0, 1, 0, 0]], dtype=float32)
    """
    _check("packed_loss_mask", "segments", segments)
    before, after = segments[..., :-1], segments[..., 1:]
    return mx.logical_and(before == after, after != 0).astype(mx.float32)


def packed_attention_mask(segments: mx.array) -> mx.array:
    """Return the attention mask in which each token attends to itself and to earlier tokens of its sequence.

    Args:
        segments: integer [batch, length], 0 on padding. For the inputs of a model, use `shift(segments)[0]`.

    Returns:
        bool [batch, 1, length, length], True where the query (third axis) may attend to the key (fourth
        axis), as `mx.fast.scaled_dot_product_attention` expects it. Padding attends to the padding before
        it, so no row is all False.

    Raises:
        ValueError, TypeError: if segments are not an integer [batch, length].

    >>> packed_attention_mask(mx.array([[1, 1, 2]])).astype(mx.int32)[0, 0]
    array([[1, 0, 0],
           [1, 1, 0],
           [0, 0, 1]], dtype=int32)
    """
    _check("packed_attention_mask", "segments", segments)
    runs = mx.cumsum(_starts(segments).astype(mx.int32), axis=-1)
    places = mx.arange(segments.shape[-1])
    same = runs[..., :, None] == runs[..., None, :]
    return mx.logical_and(same, places[:, None] >= places)[..., None, :, :]


def packed_positions(segments: mx.array) -> mx.array:
    """Return the position of each token within its own sequence, for position embeddings.

    Args:
        segments: integer [batch, length], 0 on padding.

    Returns:
        int32 [batch, length], 0 at the first token of each sequence.

    Raises:
        ValueError, TypeError: if segments are not an integer [batch, length].

    >>> packed_positions(mx.array([[1, 1, 1, 2, 2, 0]]))
    array([[0, 1, 2, 0, 1, 0]], dtype=int32)
    """
    _check("packed_positions", "segments", segments)
    places = mx.arange(segments.shape[-1])
    return places - mx.cummax(mx.where(_starts(segments), places, 0), axis=-1)


def _starts(segments: mx.array) -> mx.array:
    changes = segments[..., 1:] != segments[..., :-1]
    return mx.concatenate([mx.ones(segments[..., :1].shape, mx.bool_), changes], axis=-1)


def _check(caller: str, name: str, values: mx.array) -> None:
    inputs.integers(caller, name, values)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise checks.error(caller, f"{name} must be [batch, length] with length >= 1, got {values.shape}")
