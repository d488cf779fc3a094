"""Connectionist temporal classification: sequences of labels shorter than what they are read from."""

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core import reduce

# In the place of log(0): with -inf the gradient of a sum of nothing but zeros would be NaN.
_NEVER = -1e30


def ctc_loss(
    logits: mx.array,
    logit_paddings: mx.array,
    labels: mx.array,
    label_paddings: mx.array,
    *,
    blank_id: int = 0,
    weights: mx.array | None = None,
) -> Mean:
    """Return the negative log-likelihood, in nats, of label sequences whose alignment is not known.

    The likelihood is the sum, over all ways to write one class at each frame such that dropping repetitions
    and then blanks leaves the labels, of the product of the frames' probabilities. One pass over the frames
    keeps the log-likelihood of every prefix, with a blank before, between and after the labels.

    Args:
        logits: floating [batch, frames, classes], unnormalized.
        logit_paddings: [batch, frames], 1 or true for the frames of padding, which count for nothing.
            Paddings are masks, whose gradient is zero.
        labels: integer [batch, length], in [0, classes) and not `blank_id`; any other, where it is not
            padding, makes the loss and its gradient NaN.
        label_paddings: [batch, length], 1 or true for the labels of padding, all after the others.
        blank_id: in [0, classes), the class of the blank.
        weights: [batch] or a shape that broadcasts to it: what each sequence counts; zero leaves it out.

    Returns:
        `Mean(total, weight)` over the sequences. One with too few frames for its labels costs infinity,
        with a gradient of zero: give it no weight.

    Raises:
        ValueError: if the shapes do not fit, or `blank_id` is not a class.
        TypeError: if logits are not floating or labels not integers.

    Reference: Graves et al., 2006, doi:10.1145/1143844.1143891.

    >>> ctc_loss(mx.zeros((1, 2, 2)), mx.zeros((1, 2)), mx.array([[1]]), mx.zeros((1, 1))).value
    array(0.287682, dtype=float32)
    """
    caller = "ctc_loss"
    _check(caller, logits, logit_paddings, labels, label_paddings, blank_id)
    batch, frames, classes = logits.shape
    length = labels.shape[1]
    weights = reduce.counts(caller, weights, (batch,), "the sequences'")
    # Masks: with a gradient, MLX would take it through the places that they choose, which it refuses.
    logit_paddings, label_paddings = mx.stop_gradient(logit_paddings), mx.stop_gradient(label_paddings)
    real_frames, real_labels = logit_paddings == 0, label_paddings == 0
    if weights is not None:
        real_frames = mx.logical_and(real_frames, (weights != 0)[:, None])
        real_labels = mx.logical_and(real_labels, (weights != 0)[:, None])
    labels = reduce.signed(labels)
    known = mx.logical_and(mx.logical_and(labels >= 0, labels < classes), labels != blank_id)
    valid = mx.where(mx.logical_or(known, mx.logical_not(real_labels)).all(axis=-1), 1.0, mx.nan)
    labels = mx.clip(labels, 0, classes - 1)

    # Blank, label, blank, label, ..., blank: 2 * length + 1 places, those past the last blank never reached.
    places = 2 * length + 1
    blanks = mx.full((batch, length), blank_id, labels.dtype)
    written = mx.stack([blanks, labels], axis=-1).reshape(batch, 2 * length)
    written = mx.concatenate([written, mx.full((batch, 1), blank_id, labels.dtype)], axis=-1)
    log_probs = reduce.log_softmax(mx.where(real_frames[..., None], logits.astype(mx.float32), 0.0))
    indices = mx.broadcast_to(written[:, None, :], (batch, frames, places))
    emitted = mx.maximum(mx.take_along_axis(log_probs, indices, axis=-1), _NEVER)
    # A blank may be left out between two labels, unless they are equal: then it keeps them apart.
    skips = mx.concatenate([mx.zeros((batch, 2), mx.bool_), written[:, 2:] != written[:, :-2]], axis=-1)

    scores = mx.broadcast_to(mx.where(mx.arange(places) == 0, 0.0, _NEVER), (batch, places))
    one, two = mx.full((batch, 1), _NEVER), mx.full((batch, 2), _NEVER)
    for frame in range(frames):
        before = mx.concatenate([one, scores[:, :-1]], axis=-1)
        skipped = mx.concatenate([two, scores[:, :-2]], axis=-1)[:, :places]
        arriving = mx.logaddexp(before, mx.where(skips, skipped, _NEVER))
        reached = mx.logaddexp(scores, arriving) + emitted[:, frame]
        scores = mx.where(real_frames[:, frame, None], reached, scores)

    last = 2 * real_labels.astype(mx.int32).sum(axis=-1)
    at_blank = reduce.chosen(scores, last)
    at_label = mx.where(last > 0, reduce.chosen(scores, mx.maximum(last - 1, 0)), _NEVER)
    losses = -mx.logaddexp(at_blank, at_label)
    losses = mx.where(losses > -_NEVER / 2, mx.inf, losses)
    return reduce.weighted(caller, losses * valid, weights)


def _check(
    caller: str,
    logits: mx.array,
    logit_paddings: mx.array,
    labels: mx.array,
    label_paddings: mx.array,
    blank_id: int,
) -> None:
    reduce.floating(caller, "logits", logits)
    reduce.integers(caller, "labels", labels)
    if logits.ndim != 3 or labels.ndim != 2 or logits.shape[0] != labels.shape[0]:
        raise checks.error(
            caller,
            "logits and labels must be [batch, frames, classes] and [batch, length], "
            f"got {logits.shape} and {labels.shape}",
        )
    reduce.same_shape(caller, "label_paddings", label_paddings, "labels", labels)
    reduce.array(caller, "logit_paddings", logit_paddings)
    if logit_paddings.shape != logits.shape[:2]:
        raise checks.error(
            caller, f"logit_paddings must be [batch, frames] {logits.shape[:2]}, got {logit_paddings.shape}"
        )
    blank_id = checks.integer(caller, "blank_id", blank_id, least=0)
    if blank_id >= logits.shape[2]:
        raise checks.error(
            caller, f"blank_id must be less than the {logits.shape[2]} classes, got {blank_id}"
        )
