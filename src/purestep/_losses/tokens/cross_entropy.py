"""Cross entropy of integer targets, or of target distributions over the classes."""

from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, hardware, sums
from purestep._core.mean import Mean
from purestep._losses.core import inputs, numerics, rows, validity, weighting
from purestep._losses.core.fused import fused_cross_entropy

_CALLER = "cross_entropy"


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

    Let `p` be a target distribution over the classes (an integer target is 1 on its class), `s` the
    smoothing, `w` the class weights, `z` the z-loss, and `w_p = sum_c p_c w_c`. One target has the weight
    `w_p` and the loss

        sum_c w_c ((1 - s) p_c + s / classes) (logsumexp(logits) - logits_c) + z w_p logsumexp(logits)^2

    The loss is computed in float32 for any dtype of the logits and does not overflow at large logits. A
    class with a target of 0 adds nothing, even if its logit is -inf.

    Invalid targets make the loss and its gradient NaN, because an exception would have to wait for the
    device. A target is invalid if it is an integer outside [0, classes) that is not `ignore_index` (-100
    too), or a row with a negative entry or a sum that differs from 1 by more than 0.01.

    Differences from torch:

    - No target is ignored by default; torch ignores -100.
    - With class weights, the mean over distributions divides by the sum of `w_p`, as for integer targets.
      torch divides by the number of targets `N`; multiply by `weight / N` to get its value.
    - torch accepts targets that are not distributions.

    Args:
        logits: floating [..., classes], unnormalized.
        targets: integer [...], in [0, classes) or equal to `ignore_index`; or floating [..., classes], each
            row a distribution. The gradient with respect to a target of 0 is exact too; it is 0 if the
            logit is -inf.
        weights: [...] or a shape that broadcasts to it. A target of weight 0 is skipped, and its logits
            may be NaN.
        class_weights: [classes], at least 0; `None`: 1 for every class.
        ignore_index: integer targets of this value are skipped (-100 in many data sets). It may lie outside
            [0, classes). `None`: no target is skipped.
        label_smoothing: in [0, 1), probability that is spread evenly over all classes.
        z_loss: at least 0, factor of the squared logsumexp, which keeps the logits near normalized values
            (1e-4 in PaLM).

    Returns:
        A `Mean` of the weighted sum of losses and the sum of the targets' weights. If every weight is zero,
        the value and the gradient are zero.

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
    if class_weights is not None:
        class_weights = inputs.one_each(_CALLER, "class_weights", class_weights, logits.shape[-1])
    weights = weighting.broadcast(_CALLER, weights, logits.shape[:-1], "targets'")
    if targets.size == 0:
        return Mean.of(sums.total(logits, -1), mx.zeros(logits.shape[:-1]))
    form = _Form(class_weights, label_smoothing, z_loss)
    if soft:
        logits = weighting.masked(weights, logits.astype(mx.float32))
        targets = weighting.masked(weights, targets.astype(mx.float32))
        losses, target_weights = form.of_distributions(logits, targets)
        losses = losses * validity.distributions(targets, weights)
        return Mean(Mean.of(losses, weights).total, Mean.of(target_weights, weights).total)
    targets = inputs.signed(targets)
    weights = weighting.ignoring(ignore_index, targets, weights)
    targets, valid = inputs.in_range(targets, logits.shape[-1], weights)
    losses = rows.in_blocks(form.of_labels, weighting.masked(weights, logits), targets)
    mean = Mean.of(losses * valid, weights)
    if class_weights is None:
        return mean
    return Mean(mean.total, Mean.of(mx.take(class_weights, targets), weights).total)


class _Form(NamedTuple):
    """The loss of one target as a function of its logits."""

    class_weights: mx.array | None
    smoothing: float
    z_loss: float

    def of_labels(self, logits: mx.array, targets: mx.array) -> mx.array:
        """Return the loss of each integer target, float32 [...], class weights included."""
        if self.class_weights is not None and not self.smoothing:
            # A class of weight 0 may have a logit of -inf, and CUDA's gradient of an infinite loss is NaN.
            logits = weighting.masked(mx.take(self.class_weights, targets), logits)
        if not self.smoothing and not self.z_loss:
            return self._weighted(_plain(logits, targets), targets)
        logits, largest = numerics.shifted(logits.astype(mx.float32))
        normalizer = numerics.normalizer(logits)
        losses = (1 - self.smoothing) * (normalizer - numerics.gather(logits, targets))
        if self.z_loss:
            losses = losses + self.z_loss * mx.square(normalizer + largest.squeeze(-1))
        losses = self._weighted(losses, targets)
        if self.smoothing:
            losses = losses + self.smoothing * self._of_uniform(logits, normalizer)
        return losses

    def of_distributions(self, logits: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        """Return the loss of each distribution, class weights included, and its weight."""
        logits, largest = numerics.shifted(logits)
        normalizer = numerics.normalizer(logits)
        if self.class_weights is None:
            weighted, target_weights = targets, mx.ones(normalizer.shape)
        else:
            weighted = targets * self.class_weights
            target_weights = sums.total(weighted, -1)
        costs = normalizer[..., None] - numerics.finite_where_zero(weighted, logits)
        losses = (1 - self.smoothing) * sums.total(weighted * costs, -1)
        if self.z_loss:
            losses = losses + self.z_loss * target_weights * mx.square(normalizer + largest.squeeze(-1))
        if self.smoothing:
            losses = losses + self.smoothing * self._of_uniform(logits, normalizer)
        return losses, target_weights

    def _weighted(self, losses: mx.array, targets: mx.array) -> mx.array:
        """Return losses times their class weights; an infinite loss of a class of weight 0 becomes 0."""
        if self.class_weights is None:
            return losses
        factors = mx.take(self.class_weights, targets)
        return mx.where(factors != 0, losses * factors, 0.0)

    def _of_uniform(self, logits: mx.array, normalizer: mx.array) -> mx.array:
        """Return the cross entropy of the uniform distribution."""
        if self.class_weights is None:
            return normalizer - sums.mean(logits, -1)
        costs = mx.where(self.class_weights != 0, normalizer[..., None] - logits, 0.0)
        return sums.mean(costs * self.class_weights, -1)


def _plain(logits: mx.array, targets: mx.array) -> mx.array:
    if hardware.on_gpu():
        return fused_cross_entropy(logits, targets)
    # On a CPU MLX reduces in the dtype of the logits, so they are converted to float32 first.
    logits = numerics.shifted(logits.astype(mx.float32))[0]
    return numerics.normalizer(logits) - numerics.gather(logits, targets)


def _check(
    logits: mx.array, targets: mx.array, ignore_index: int | None, smoothing: float, z_loss: float
) -> bool:
    """Check the arguments, and return whether the targets are distributions."""
    arrays = isinstance(logits, mx.array) and isinstance(targets, mx.array)
    soft = arrays and mx.issubdtype(targets.dtype, mx.floating) and targets.ndim == logits.ndim > 0
    if soft:
        inputs.same_shape(_CALLER, "targets", targets, "logits", logits)
        if ignore_index is not None:
            raise checks.error(
                _CALLER, f"ignore_index must be None for targets that are distributions, got {ignore_index}"
            )
    else:
        inputs.labelled(_CALLER, logits, targets)
    inputs.last_axis(_CALLER, "logits", logits)
    inputs.floating(_CALLER, "logits", logits)
    if not soft:
        inputs.integers(_CALLER, "targets", targets)
    if ignore_index is not None:
        ignore_index = checks.integer(_CALLER, "ignore_index", ignore_index)
    checks.number(_CALLER, "label_smoothing", smoothing, least=0, below=1)
    z_loss = checks.number(_CALLER, "z_loss", z_loss, least=0)
    return soft
