"""Dice losses of segmentation: 1 minus the overlap of predictions and targets."""

import math
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, sums
from purestep._core.mean import Mean
from purestep._core.tracing import microbatching
from purestep._losses.core import inputs, validity, weighting


def dice_loss(
    predictions: mx.array,
    targets: mx.array,
    *,
    class_weights: mx.array | None = None,
    smooth: float = 1.0,
    alpha: float = 0.5,
    beta: float = 0.5,
    apply_softmax: bool = True,
    ignore_background: bool = False,
    where: mx.array | None = None,
    weights: mx.array | None = None,
) -> Mean:
    """Return 1 minus the Dice coefficient of each example and class, averaged over the classes.

    Let `p` be the probabilities and `t` the targets of one class. With sums over the positions:

        1 - (sum(p t) + smooth) / (sum(p t) + alpha (sum(p) - sum(p t)) + beta (sum(t) - sum(p t)) + smooth)

    `alpha` weighs false positives and `beta` false negatives. With 1/2 each this is the Dice loss, with
    other values the Tversky loss.

    Args:
        predictions: floating [batch, ..., classes]: logits, or probabilities with `apply_softmax=False`.
            Logits of a single class pass through a sigmoid, logits of several classes through a softmax. A
            probability outside [0, 1] makes the loss and its gradient NaN.
        targets: [batch, ..., classes], one-hot or soft; a value outside [0, 1] makes the loss NaN too.
        class_weights: [classes], factors of the classes' losses before the average.
        smooth: at least 0, as in the formula. A class that is empty in both arrays always has the loss 0.
        alpha: at least 0.
        beta: at least 0.
        apply_softmax: whether the predictions are logits.
        ignore_background: exclude class 0 from the average, if there are other classes.
        where: [batch, ...] or a shape that broadcasts to it: true for the positions to include; `None`: all.
        weights: [batch] or a shape that broadcasts to it: weight of each example.

    Returns:
        `Mean(total, weight)` over the examples. An example without included positions has weight 0.

    Raises:
        ValueError: if the shapes do not fit, or an option is out of its range.
        TypeError: if the predictions are not floating.

    Reference: Milletari et al., arXiv:1606.04797; Salehi et al., arXiv:1706.05721.

    >>> dice_loss(mx.array([[[9.0], [-9.0]]]), mx.array([[[1.0], [1.0]]]), smooth=0.0).value
    array(0.333333, dtype=float32)
    """
    caller = "dice_loss"
    parts = _parts(caller, predictions, targets, apply_softmax, where, weights)
    losses = _losses(caller, parts, smooth, alpha, beta)
    if class_weights is not None:
        losses = losses * inputs.one_each(caller, "class_weights", class_weights, losses.shape[-1])
    return weighting.mean(caller, sums.mean(_foreground(losses, ignore_background), -1), parts.weights)


def multiclass_generalized_dice_loss(
    predictions: mx.array,
    targets: mx.array,
    *,
    smooth: float = 1.0,
    apply_softmax: bool = True,
    ignore_background: bool = False,
    where: mx.array | None = None,
    weights: mx.array | None = None,
) -> Mean:
    """Return `dice_loss` with classes weighted by the inverse square of their frequency.

    A class that occurs `f` times in all targets has the weight `1 / (f^2 + 1e-7)`, divided by the mean of
    these weights. The weights depend on the whole batch, so microbatches are an error.

    Args: as `dice_loss`.

    Raises:
        ValueError: if the shapes do not fit, `smooth` is out of its range, or the batch is one of several
            microbatches.
        TypeError: if the predictions are not floating.

    Reference: Sudre et al., arXiv:1707.03237.

    >>> targets = mx.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    >>> multiclass_generalized_dice_loss(9 * targets, targets).value < 1e-3
    array(True, dtype=bool)
    """
    caller = "multiclass_generalized_dice_loss"
    microbatching.whole_batch(caller, "the frequency of a class is counted over the whole batch")
    parts = _parts(caller, predictions, targets, apply_softmax, where, weights)
    losses = _losses(caller, parts, smooth)
    kept = parts.targets.reshape(targets.shape)
    frequencies = sums.total(kept, tuple(range(kept.ndim - 1)))
    class_weights = 1 / (mx.square(frequencies) + 1e-7)
    losses = losses * (class_weights / sums.mean(class_weights))
    return weighting.mean(caller, sums.mean(_foreground(losses, ignore_background), -1), parts.weights)


def binary_dice_loss(
    predictions: mx.array,
    targets: mx.array,
    *,
    smooth: float = 1.0,
    apply_sigmoid: bool = True,
    where: mx.array | None = None,
    weights: mx.array | None = None,
) -> Mean:
    """Return `dice_loss` of one class, without a class axis.

    Args:
        predictions: floating [batch, ...]: logits, or probabilities in [0, 1] with `apply_sigmoid=False`.
        targets: [batch, ...], in [0, 1]; any other value makes the loss and its gradient NaN.
        smooth: as in `dice_loss`.
        apply_sigmoid: whether the predictions are logits.
        where: as in `dice_loss`.
        weights: as in `dice_loss`.

    Raises:
        ValueError: if the shapes do not fit, or `smooth` is out of its range.
        TypeError: if the predictions are not floating.

    >>> binary_dice_loss(mx.array([[9.0, -9.0]]), mx.array([[1, 1]]), smooth=0.0).value
    array(0.333333, dtype=float32)
    """
    caller = "binary_dice_loss"
    inputs.floating(caller, "predictions", predictions)
    inputs.same_shape(caller, "targets", targets, "predictions", predictions)
    channels = (predictions[..., None], targets[..., None])
    parts = _parts(caller, *channels, apply_sigmoid, where, weights)
    return weighting.mean(caller, _losses(caller, parts, smooth).squeeze(-1), parts.weights)


class _Parts(NamedTuple):
    """Predictions and targets with flattened positions; excluded positions and examples are zero."""

    probabilities: mx.array  # float32 [batch, positions, classes]
    targets: mx.array  # float32 [batch, positions, classes]
    valid: mx.array  # float32 [batch, classes], NaN where a value is outside [0, 1]
    weights: mx.array  # float32 [batch]


def _parts(
    caller: str,
    predictions: mx.array,
    targets: mx.array,
    normalize: bool,
    where: mx.array | None,
    weights: mx.array | None,
) -> _Parts:
    """Check the arrays, mask them, and turn logits into probabilities."""
    inputs.floating(caller, "predictions", predictions)
    inputs.same_shape(caller, "targets", targets, "predictions", predictions)
    if predictions.ndim < 2 or predictions.shape[-1] == 0:
        raise checks.error(caller, f"predictions must be [batch, ..., classes], got {predictions.shape}")
    included = weighting.broadcast(caller, where, predictions.shape[:-1], "the positions'", "where")
    weights = weighting.broadcast(caller, weights, predictions.shape[:1], "the examples'")
    kept = _kept(included, weights, predictions)
    probabilities, targets = (
        weighting.masked(kept, values.astype(mx.float32)) for values in (predictions, targets)
    )
    if normalize:
        single = probabilities.shape[-1] == 1
        probabilities = mx.sigmoid(probabilities) if single else mx.softmax(probabilities, axis=-1)
        probabilities = weighting.masked(kept, probabilities)
    flat = (probabilities.shape[0], math.prod(probabilities.shape[1:-1]), probabilities.shape[-1])
    probabilities, targets = probabilities.reshape(flat), targets.reshape(flat)
    valid = validity.inside(targets)
    if not normalize:
        valid = mx.logical_and(valid, validity.inside(probabilities))
    weights = mx.ones(flat[:1]) if weights is None else weights
    if included is not None:
        weights = weights * (included != 0).reshape(flat[:2]).any(axis=-1)
    return _Parts(probabilities, targets, validity.nan_unless(valid.all(axis=1)), weights)


def _losses(caller: str, parts: _Parts, smooth: float, alpha: float = 0.5, beta: float = 0.5) -> mx.array:
    """Return the loss of each example and class, [batch, classes]."""
    smooth, alpha, beta = (
        checks.number(caller, name, value, least=0)
        for name, value in (("smooth", smooth), ("alpha", alpha), ("beta", beta))
    )
    probabilities, targets = parts.probabilities, parts.targets
    both = sums.total(probabilities * targets, 1)
    false_positive = sums.total(probabilities * (1 - targets), 1)
    false_negative = sums.total((1 - probabilities) * targets, 1)
    wrong = alpha * false_positive + beta * false_negative
    size = both + wrong + smooth
    # 1 - (both + smooth) / size would lose the digits of a small loss. An empty class has the loss 0.
    return wrong / mx.where(size == 0, 1.0, size) * parts.valid


def _kept(included: mx.array | None, weights: mx.array | None, predictions: mx.array) -> mx.array | None:
    """Return nonzero numbers for the included positions of examples with weight."""
    if weights is None:
        return included
    examples = (weights != 0).reshape(*weights.shape, *(1,) * (predictions.ndim - 2))
    if included is None:
        return mx.broadcast_to(examples, predictions.shape[:-1])
    return examples * included


def _foreground(losses: mx.array, ignore_background: bool) -> mx.array:
    return losses[..., 1:] if ignore_background and losses.shape[-1] > 1 else losses
