"""Connectionist temporal classification: label sequences that are shorter than their frames."""

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core import inputs, validity, weighting
from purestep._losses.core.numerics import LOG_ZERO, gather, log_softmax


def ctc_loss(
    logits: mx.array,
    logit_paddings: mx.array,
    labels: mx.array,
    label_paddings: mx.array,
    *,
    blank_id: int = 0,
    weights: mx.array | None = None,
) -> Mean:
    """Return the negative log-likelihood, in nats, of label sequences with unknown alignment.

    An alignment writes one class at each frame; dropping repetitions and then blanks must leave the labels.
    The likelihood is the sum over all alignments of the product of the frames' probabilities. One pass over
    the frames computes the log-likelihood of every prefix, with a blank before, between and after labels.

    Args:
        logits: floating [batch, frames, classes], unnormalized.
        logit_paddings: [batch, frames], 1 or true for frames of padding, which are skipped. Paddings are
            masks, and their gradient is zero.
        labels: integer [batch, length], in [0, classes) and not `blank_id`; any other value that is not
            padding makes the loss and its gradient NaN.
        label_paddings: [batch, length], 1 or true for labels of padding, which must follow all others.
        blank_id: in [0, classes), the class of the blank.
        weights: [batch] or a shape that broadcasts to it; sequences of weight 0 are skipped.

    Returns:
        `Mean(total, weight)` over the sequences. A sequence with too few frames for its labels has an
        infinite loss and a gradient of zero: give it weight 0.

    Raises:
        ValueError: if the shapes do not fit, or `blank_id` is not a class.
        TypeError: if logits are not floating or labels not integers.

    Reference: Graves et al., 2006, doi:10.1145/1143844.1143891.

    >>> ctc_loss(mx.zeros((1, 2, 2)), mx.zeros((1, 2)), mx.array([[1]]), mx.zeros((1, 1))).value
    array(0.287682, dtype=float32)
    """
    caller = "ctc_loss"
    _check(caller, logits, logit_paddings, labels, label_paddings, blank_id)
    weights = weighting.broadcast(caller, weights, logits.shape[:1], "the sequences'")
    # MLX cannot differentiate the indices and conditions that the paddings select.
    real_frames = mx.stop_gradient(logit_paddings) == 0
    real_labels = mx.stop_gradient(label_paddings) == 0
    if weights is not None:
        real_frames = mx.logical_and(real_frames, (weights != 0)[:, None])
        real_labels = mx.logical_and(real_labels, (weights != 0)[:, None])
    classes, labels = logits.shape[-1], inputs.signed(labels)
    known = mx.logical_and(mx.logical_and(labels >= 0, labels < classes), labels != blank_id)
    valid = validity.nan_unless(mx.logical_or(known, mx.logical_not(real_labels)).all(axis=-1))
    places = _with_blanks(mx.clip(labels, 0, classes - 1), blank_id)
    log_probs = log_softmax(mx.where(real_frames[..., None], logits.astype(mx.float32), 0.0))
    scores = _forward(log_probs, places, real_frames)
    losses = -_end(scores, 2 * real_labels.astype(mx.int32).sum(axis=-1))
    losses = mx.where(losses > -LOG_ZERO / 2, mx.inf, losses)
    return weighting.mean(caller, losses * valid, weights)


def _with_blanks(labels: mx.array, blank_id: int) -> mx.array:
    """Return blank, label, blank, label, ..., blank: [batch, 2 * length + 1]."""
    batch, length = labels.shape
    blanks = mx.full((batch, length), blank_id, labels.dtype)
    places = mx.stack([blanks, labels], axis=-1).reshape(batch, 2 * length)
    return mx.concatenate([places, mx.full((batch, 1), blank_id, labels.dtype)], axis=-1)


def _forward(log_probs: mx.array, places: mx.array, real_frames: mx.array) -> mx.array:
    """Return the log-likelihood of all frames for alignments that end at each place, [batch, places]."""
    batch, frames, _ = log_probs.shape
    count = places.shape[1]
    indices = mx.broadcast_to(places[:, None, :], (batch, frames, count))
    emitted = mx.maximum(mx.take_along_axis(log_probs, indices, axis=-1), LOG_ZERO)
    # The blank between two labels may be skipped, unless the labels are equal: then it separates them.
    skips = mx.concatenate([mx.zeros((batch, 2), mx.bool_), places[:, 2:] != places[:, :-2]], axis=-1)
    scores = mx.broadcast_to(mx.where(mx.arange(count) == 0, 0.0, LOG_ZERO), (batch, count))
    one, two = mx.full((batch, 1), LOG_ZERO), mx.full((batch, 2), LOG_ZERO)
    for frame in range(frames):
        before = mx.concatenate([one, scores[:, :-1]], axis=-1)
        skipped = mx.concatenate([two, scores[:, :-2]], axis=-1)[:, :count]
        arriving = mx.logaddexp(before, mx.where(skips, skipped, LOG_ZERO))
        reached = mx.logaddexp(scores, arriving) + emitted[:, frame]
        scores = mx.where(real_frames[:, frame, None], reached, scores)
    return scores


def _end(scores: mx.array, last: mx.array) -> mx.array:
    """Return the log-likelihood of an end at the last blank or at the label before it."""
    at_blank = gather(scores, last)
    at_label = mx.where(last > 0, gather(scores, mx.maximum(last - 1, 0)), LOG_ZERO)
    return mx.logaddexp(at_blank, at_label)


def _check(
    caller: str,
    logits: mx.array,
    logit_paddings: mx.array,
    labels: mx.array,
    label_paddings: mx.array,
    blank_id: int,
) -> None:
    inputs.floating(caller, "logits", logits)
    inputs.integers(caller, "labels", labels)
    if logits.ndim != 3 or labels.ndim != 2 or logits.shape[0] != labels.shape[0]:
        raise checks.error(
            caller,
            "logits and labels must be [batch, frames, classes] and [batch, length], "
            f"got {logits.shape} and {labels.shape}",
        )
    inputs.same_shape(caller, "label_paddings", label_paddings, "labels", labels)
    inputs.array(caller, "logit_paddings", logit_paddings)
    if logit_paddings.shape != logits.shape[:2]:
        raise checks.error(
            caller, f"logit_paddings must be [batch, frames] {logits.shape[:2]}, got {logit_paddings.shape}"
        )
    blank_id = checks.integer(caller, "blank_id", blank_id, least=0)
    if blank_id >= logits.shape[2]:
        raise checks.error(
            caller, f"blank_id must be less than the {logits.shape[2]} classes, got {blank_id}"
        )
