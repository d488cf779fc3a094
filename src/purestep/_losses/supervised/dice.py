"""Dice losses of segmentation: one less the overlap of what is predicted and what is there."""

import math

import mlx.core as mx

from purestep._core import checks, microbatching, sums
from purestep._core.mean import Mean
from purestep._losses.core import reduce


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
    """Return one less the Dice coefficient of each example and class, averaged over the classes.

    With `p` the probabilities and `t` the targets of one class, summed over the positions:

        1 - (sum(p t) + smooth) / (sum(p t) + alpha (sum(p) - sum(p t)) + beta (sum(t) - sum(p t)) + smooth)

    `alpha` is what a false positive costs and `beta` a false negative: one half each is Dice, others Tversky.

    Args:
        predictions: floating [batch, ..., classes]: logits, or with `apply_softmax=False` probabilities.
            Of one class they are passed through a sigmoid, of more through a softmax. A probability
            outside [0, 1] makes the loss and its gradient NaN.
        targets: [batch, ..., classes], one-hot or soft; one outside [0, 1] does so too.
        class_weights: [classes]: each class's loss is multiplied by this, before the average.
        smooth: at least 0, what keeps the coefficient of a class that is nowhere defined, at 1.
        alpha: at least 0.
        beta: at least 0.
        apply_softmax: whether the predictions are logits.
        ignore_background: leave class 0 out of the average, where there are others.
        where: [batch, ...] or a shape that broadcasts to it: true for the positions that count.
        weights: [batch] or a shape that broadcasts to it: what each example counts.

    Returns:
        `Mean(total, weight)` over the examples; one without a position that counts weighs nothing.

    Raises:
        ValueError: if the shapes do not fit, or an option is out of its range.
        TypeError: if the predictions are not floating.

    Reference: Milletari et al., arXiv:1606.04797; Salehi et al., arXiv:1706.05721.

    >>> dice_loss(mx.array([[[9.0], [-9.0]]]), mx.array([[[1.0], [1.0]]]), smooth=0.0).value
    array(0.333333, dtype=float32)
    """
    name = "dice_loss"
    losses, counts = _losses(name, predictions, targets, smooth, alpha, beta, apply_softmax, where, weights)
    if class_weights is not None:
        reduce.array(name, "class_weights", class_weights)
        if class_weights.shape != losses.shape[-1:]:
            raise checks.error(
                name, f"class_weights must have shape {losses.shape[-1:]}, got {class_weights.shape}"
            )
        losses = losses * class_weights.astype(mx.float32)
    return reduce.weighted(name, sums.mean(_foreground(losses, ignore_background), -1), counts)


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
    """Return `dice_loss` with classes weighted by the inverse square of how often they occur.

    A class that occurs `f` times in all targets weighs `1 / (f^2 + 1e-7)`, over the mean of all classes'.
    So the weights are of the batch: cut into microbatches, it would have others, and is refused.

    Args:
        predictions: floating [batch, ..., classes], as in `dice_loss`.
        targets: [batch, ..., classes], one-hot or soft, in [0, 1] as in `dice_loss`.
        smooth: at least 0.
        apply_softmax: whether the predictions are logits.
        ignore_background: leave class 0 out of the average, where there are others.
        where: [batch, ...] or a shape that broadcasts to it: true for the positions that count.
        weights: [batch] or a shape that broadcasts to it: what each example counts.

    Raises:
        ValueError: if the shapes do not fit, `smooth` is out of its range, or the batch is one of several
            microbatches.
        TypeError: if the predictions are not floating.

    Reference: Sudre et al., arXiv:1707.03237.

    >>> targets = mx.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    >>> multiclass_generalized_dice_loss(9 * targets, targets).value < 1e-3
    array(True, dtype=bool)
    """
    name = "multiclass_generalized_dice_loss"
    microbatching.whole_batch(name, "how often a class occurs is counted over the whole batch")
    losses, counts = _losses(name, predictions, targets, smooth, 0.5, 0.5, apply_softmax, where, weights)
    kept = targets.astype(mx.float32)
    if where is not None:
        kept = reduce.keep(reduce.counts(name, where, targets.shape[:-1], "the positions'", "where"), kept)
    if weights is not None:
        kept = reduce.keep(reduce.counts(name, weights, targets.shape[:1], "the examples'"), kept)
    frequencies = sums.total(kept, tuple(range(kept.ndim - 1)))
    class_weights = 1 / (mx.square(frequencies) + 1e-7)
    losses = losses * (class_weights / sums.mean(class_weights))
    return reduce.weighted(name, sums.mean(_foreground(losses, ignore_background), -1), counts)


def binary_dice_loss(
    predictions: mx.array,
    targets: mx.array,
    *,
    smooth: float = 1.0,
    apply_sigmoid: bool = True,
    where: mx.array | None = None,
    weights: mx.array | None = None,
) -> Mean:
    """Return `dice_loss` of one class without an axis for it.

    Args:
        predictions: floating [batch, ...]: logits, or with `apply_sigmoid=False` probabilities in [0, 1].
        targets: [batch, ...], in [0, 1]; any other makes the loss and its gradient NaN.
        smooth: at least 0.
        apply_sigmoid: whether the predictions are logits.
        where: [batch, ...] or a shape that broadcasts to it: true for the positions that count.
        weights: [batch] or a shape that broadcasts to it: what each example counts.

    Raises:
        ValueError: if the shapes do not fit, or `smooth` is out of its range.
        TypeError: if the predictions are not floating.

    >>> binary_dice_loss(mx.array([[9.0, -9.0]]), mx.array([[1, 1]]), smooth=0.0).value
    array(0.333333, dtype=float32)
    """
    name = "binary_dice_loss"
    reduce.floating(name, "predictions", predictions)
    reduce.same_shape(name, "targets", targets, "predictions", predictions)
    channels = (predictions[..., None], targets[..., None])
    losses, counts = _losses(name, *channels, smooth, 0.5, 0.5, apply_sigmoid, where, weights)
    return reduce.weighted(name, losses.squeeze(-1), counts)


def _losses(
    name: str,
    predictions: mx.array,
    targets: mx.array,
    smooth: float,
    alpha: float,
    beta: float,
    normalize: bool,
    where: mx.array | None,
    weights: mx.array | None,
) -> tuple[mx.array, mx.array]:
    """Return the loss of each example and class, [batch, classes], and what each example weighs."""
    reduce.floating(name, "predictions", predictions)
    reduce.same_shape(name, "targets", targets, "predictions", predictions)
    if predictions.ndim < 2 or predictions.shape[-1] == 0:
        raise checks.error(name, f"predictions must be [batch, ..., classes], got {predictions.shape}")
    smooth, alpha, beta = (
        checks.number(name, option, value, least=0)
        for option, value in (("smooth", smooth), ("alpha", alpha), ("beta", beta))
    )
    there = reduce.counts(name, where, predictions.shape[:-1], "the positions'", "where")
    weights = reduce.counts(name, weights, predictions.shape[:1], "the examples'")
    kept = _kept(there, weights, predictions)
    probabilities, targets = (
        reduce.keep(kept, values.astype(mx.float32)) for values in (predictions, targets)
    )
    if normalize:
        single = probabilities.shape[-1] == 1
        probabilities = mx.sigmoid(probabilities) if single else mx.softmax(probabilities, axis=-1)
        probabilities = reduce.keep(kept, probabilities)
    flat = (probabilities.shape[0], math.prod(probabilities.shape[1:-1]), probabilities.shape[-1])
    probabilities, targets = probabilities.reshape(flat), targets.reshape(flat)
    valid = _inside(targets) if normalize else mx.logical_and(_inside(targets), _inside(probabilities))
    both = sums.total(probabilities * targets, 1)
    false_positive = sums.total(probabilities * (1 - targets), 1)
    false_negative = sums.total((1 - probabilities) * targets, 1)
    wrong = alpha * false_positive + beta * false_negative
    size = both + wrong + smooth
    # Not 1 - (both + smooth) / size, which loses the digits of a small loss. Nothing at all is no error.
    losses = wrong / mx.where(size == 0, 1.0, size)
    losses = losses * mx.where(valid.all(axis=1), 1.0, mx.nan)
    counts = mx.ones(losses.shape[:1]) if weights is None else weights
    if there is not None:
        counts = counts * (there != 0).reshape(flat[:2]).any(axis=-1)
    return losses, counts


def _kept(there: mx.array | None, weights: mx.array | None, predictions: mx.array) -> mx.array | None:
    """Return which positions count, by their own mask and their example's weight."""
    if weights is None:
        return there
    examples = (weights != 0).reshape(*weights.shape, *(1,) * (predictions.ndim - 2))
    return mx.broadcast_to(examples, predictions.shape[:-1]) if there is None else examples * there


def _inside(values: mx.array) -> mx.array:
    return mx.logical_and(values >= 0, values <= 1)


def _foreground(losses: mx.array, ignore_background: bool) -> mx.array:
    return losses[..., 1:] if ignore_background and losses.shape[-1] > 1 else losses
