"""Cross entropy against integer targets, or against distributions over the classes."""

import mlx.core as mx

from purestep._core import checks, hardware, sums
from purestep._core.mean import Mean
from purestep._losses.core import fused, reduce

_WHERE = "cross_entropy"


def cross_entropy(
    logits: mx.array,
    targets: mx.array,
    *,
    weights: mx.array | None = None,
    class_weights: mx.array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Mean:
    """Return the mean negative log-likelihood of the targets, in nats, as a `Mean` over real targets.

    For one target, a distribution `p` over the classes (an integer target puts 1 on its class), smoothing
    `s`, class weights `w` and z-loss `z`, with `w_p = sum_c p_c w_c`:

        sum_c w_c ((1 - s) p_c + s / classes) (logsumexp(logits) - logits_c) + z w_p logsumexp(logits)^2

    which weighs `w_p`; computed in float32 whatever the dtype of the logits, with no overflow at large
    logits. A class that a distribution gives 0 costs nothing, also where its logit is -inf. An integer
    target outside [0, classes) that is not `ignore_index` makes the loss and its gradient NaN: nothing is
    read back from the device to find it, and no plausible number comes of it. So does -100, unless it is
    `ignore_index`, and a distribution with a negative entry or a sum that differs from 1 by more than 0.01.

    Differences from `torch.nn.functional.cross_entropy`:

    1. No target is ignored by default. torch leaves out -100.
    2. With class weights, distributions are averaged over what they weigh, `w_p`, as integer targets are.
       torch divides their sum by the number of targets: multiply by `weight / N` to get its value.
    3. torch takes targets that are no distribution as they are.

    Args:
        logits: floating [..., classes], unnormalized.
        targets: integer [...], in [0, classes) or equal to `ignore_index`; or floating [..., classes], of
            which each row is a distribution. The gradient with respect to them is right also where they are
            0, and 0 where the logit is -inf.
        weights: [...] or a shape that broadcasts to it: what each target counts; zero leaves it out, and
            its logits with it, NaN or not.
        class_weights: [classes], at least 0: what each class counts.
        ignore_index: integer targets of this value are left out (-100 in many data sets); may lie outside
            [0, classes).
        label_smoothing: in [0, 1), the probability spread evenly over all classes.
        z_loss: at least 0, what holds the logits near their normalized values (1e-4 in PaLM).

    Returns:
        `Mean(total, weight)`: the weighted sum of losses, and the sum of weights of the targets that
        count. When none does, both are zero, and so are `value` and the gradient.

    Raises:
        ValueError: if the shapes do not fit, or an option is out of its range.
        TypeError: if targets are neither integers nor distributions, or logits not floating.

    Reference: label smoothing, Szegedy et al., arXiv:1512.00567; z-loss, Chowdhery et al., arXiv:2204.02311.

    >>> cross_entropy(mx.zeros((2, 4)), mx.array([1, -100]), ignore_index=-100)
    Mean(total=array(1.38629, dtype=float32), weight=array(1, dtype=float32))
    >>> cross_entropy(mx.zeros((2, 4)), mx.full((2, 4), 0.25)).value
    array(1.38629, dtype=float32)
    """
    label_smoothing, z_loss = checks.python_number(label_smoothing), checks.python_number(z_loss)
    soft = _check(logits, targets, ignore_index, label_smoothing, z_loss)
    class_weights = _class_weights(class_weights, logits)
    counts = reduce.counts(_WHERE, weights, logits.shape[:-1], "targets'")
    if targets.size == 0:
        return Mean.of(sums.total(logits, -1), mx.zeros(logits.shape[:-1]))
    if soft:
        logits = reduce.keep(counts, logits.astype(mx.float32))
        targets = reduce.keep(counts, targets.astype(mx.float32))
        losses, shares = _soft(logits, targets, class_weights, label_smoothing, z_loss)
        losses = losses * reduce.distributions(targets, counts)
        return Mean(Mean.of(losses, counts).total, Mean.of(shares, counts).total)
    targets = reduce.signed(targets)
    counts = reduce.ignoring(ignore_index, targets, counts)
    classes = logits.shape[-1]
    valid = mx.logical_and(targets >= 0, targets < classes)
    if counts is not None:
        valid = mx.logical_or(valid, counts == 0)
    targets = mx.clip(targets, 0, classes - 1)
    logits = reduce.keep(counts, logits)
    if class_weights is not None and not label_smoothing:
        # What counts nothing may be impossible, and CUDA's gradient of an infinite loss is NaN.
        logits = reduce.keep(mx.take(class_weights, targets), logits)
    if label_smoothing or z_loss:
        losses = _integer(logits.astype(mx.float32), targets, class_weights, label_smoothing, z_loss)
    else:
        losses = _fused(logits, targets)
        losses = _times(losses, targets, class_weights)
    # Multiplied, not selected: so the gradient of a bad target is NaN as well; a selection gives zero.
    mean = Mean.of(losses * mx.where(valid, 1.0, mx.nan), counts)
    if class_weights is None:
        return mean
    return Mean(mean.total, Mean.of(mx.take(class_weights, targets), counts).total)


def _fused(logits: mx.array, targets: mx.array) -> mx.array:
    if hardware.on_gpu():
        return fused.cross_entropy(logits, targets)
    # The CPU reduces in the dtype of the logits: give it float32, and see `_shifted`.
    return mx.fast.cross_entropy(_shifted(logits.astype(mx.float32))[0], targets)


def _shifted(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Return logits less their largest, the logsumexp of those, and the largest, kept from the gradient.

    The loss is a difference of two numbers of the logits' size: at 1e4 float32 leaves it three digits.
    """
    largest = mx.stop_gradient(logits.max(axis=-1, keepdims=True))
    logits = logits - largest
    return logits, mx.logsumexp(logits, axis=-1), largest.squeeze(-1)


def _integer(
    logits: mx.array, targets: mx.array, class_weights: mx.array | None, smoothing: float, z_loss: float
) -> mx.array:
    """Return the loss of each integer target, class weights included."""
    logits, total, largest = _shifted(logits)
    losses = (1 - smoothing) * (total - reduce.chosen(logits, targets))
    if z_loss:
        losses = losses + z_loss * mx.square(total + largest)
    losses = _times(losses, targets, class_weights)
    if smoothing:
        losses = losses + smoothing * _even(logits, total, class_weights)
    return losses


def _times(losses: mx.array, targets: mx.array, class_weights: mx.array | None) -> mx.array:
    """Return losses times the weights of their classes; what a class of weight 0 costs may be infinite."""
    if class_weights is None:
        return losses
    factors = mx.take(class_weights, targets)
    return mx.where(factors != 0, losses * factors, 0.0)


def _even(logits: mx.array, total: mx.array, class_weights: mx.array | None) -> mx.array:
    """Return the cross entropy of the distribution that gives every class the same."""
    if class_weights is None:
        return total - sums.mean(logits, -1)
    costs = mx.where(class_weights != 0, total[..., None] - logits, 0.0)
    return sums.mean(costs * class_weights, -1)


def _soft(
    logits: mx.array, targets: mx.array, class_weights: mx.array | None, smoothing: float, z_loss: float
) -> tuple[mx.array, mx.array]:
    """Return the loss of each distribution, class weights included, and what it weighs."""
    logits, total, largest = _shifted(logits)
    weighted = targets if class_weights is None else targets * class_weights
    shares = mx.ones(total.shape) if class_weights is None else sums.total(weighted, -1)
    costs = total[..., None] - reduce.spared(weighted, logits)
    losses = (1 - smoothing) * sums.total(weighted * costs, -1)
    if z_loss:
        losses = losses + z_loss * shares * mx.square(total + largest)
    if smoothing:
        losses = losses + smoothing * _even(logits, total, class_weights)
    return losses, shares


def _class_weights(class_weights: mx.array | None, logits: mx.array) -> mx.array | None:
    if class_weights is None:
        return None
    if not isinstance(class_weights, mx.array):
        raise TypeError(f"{_WHERE}: class_weights must be an array, got {type(class_weights).__name__}")
    if class_weights.shape != logits.shape[-1:]:
        raise checks.error(
            _WHERE, f"class_weights must have shape {logits.shape[-1:]}, got {class_weights.shape}"
        )
    return class_weights.astype(mx.float32)


def _check(
    logits: mx.array, targets: mx.array, ignore_index: int | None, smoothing: float, z_loss: float
) -> bool:
    """Refuse what does not fit, and tell whether the targets are distributions."""
    arrays = isinstance(logits, mx.array) and isinstance(targets, mx.array)
    soft = arrays and mx.issubdtype(targets.dtype, mx.floating) and targets.ndim == logits.ndim > 0
    if soft:
        reduce.same_shape(_WHERE, "targets", targets, "logits", logits)
        if ignore_index is not None:
            raise checks.error(
                _WHERE, f"ignore_index must be None for targets that are distributions, got {ignore_index}"
            )
    else:
        reduce.labelled(_WHERE, logits, targets)
    if logits.shape[-1] == 0:
        raise checks.error(_WHERE, f"logits must have at least one class, got {logits.shape}")
    reduce.floating(_WHERE, "logits", logits)
    if not soft:
        reduce.integers(_WHERE, "targets", targets)
    if ignore_index is not None:
        ignore_index = checks.integer(_WHERE, "ignore_index", ignore_index)
    checks.number(_WHERE, "label_smoothing", smoothing, least=0, below=1)
    z_loss = checks.number(_WHERE, "z_loss", z_loss, least=0)
    return soft
