"""Cross entropy against integer targets."""

import mlx.core as mx

from purestep import checks
from purestep.mean import Mean


def cross_entropy(
    logits: mx.array,
    targets: mx.array,
    *,
    weights: mx.array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> Mean:
    """Return the mean negative log-likelihood of the targets, in nats, as a `Mean` over real targets.

    For one target `t` of `classes` and smoothing `s`:

        (1 - s) * (logsumexp(logits) - logits[t]) + s * (logsumexp(logits) - mean(logits))

    computed in float32 whatever the dtype of the logits, with no overflow at large logits. A target
    outside [0, classes) that is not `ignore_index` makes the loss and its gradient NaN: nothing is read
    back from the device to find it, and no plausible number comes of it.

    Args:
        logits: floating [..., classes], unnormalized.
        targets: integer [...], in [0, classes) or equal to `ignore_index`.
        weights: [...] or a shape that broadcasts to it: what each target counts; zero leaves it out.
        ignore_index: targets of this value are left out (-100 in many data sets); may lie outside
            [0, classes).
        label_smoothing: in [0, 1), the probability spread evenly over all classes.

    Returns:
        `Mean(total, weight)`: the weighted sum of losses, and the sum of weights of the targets that
        count. When none does, both are zero, and so are `value` and the gradient.

    Raises:
        ValueError: if the shapes do not fit, or an option is out of its range.
        TypeError: if targets are not integers or logits not floating.

    Reference: label smoothing, Szegedy et al., arXiv:1512.00567.

    >>> cross_entropy(mx.zeros((2, 4)), mx.array([1, -100]), ignore_index=-100)
    Mean(total=array(1.38629, dtype=float32), weight=array(1, dtype=float32))
    """
    _check(logits, targets, label_smoothing)
    if targets.size == 0:
        return Mean.of(logits.sum(axis=-1), mx.zeros(targets.shape))
    classes = logits.shape[-1]
    targets = _signed(targets)
    losses = _negative_log_likelihood(logits, mx.clip(targets, 0, classes - 1), label_smoothing)
    valid = mx.logical_and(targets >= 0, targets < classes)
    counts = None if weights is None else _broadcast(weights, targets)
    if ignore_index is not None:
        kept = targets != ignore_index
        counts = kept.astype(mx.float32) if counts is None else mx.where(kept, counts, 0.0)
    if counts is not None:
        valid = mx.logical_or(valid, counts == 0)
    # Multiplied, not selected: so the gradient of a bad target is NaN as well; a selection gives zero.
    return Mean.of(losses * mx.where(valid, 1.0, mx.nan), counts)


def _negative_log_likelihood(logits: mx.array, targets: mx.array, smoothing: float) -> mx.array:
    if not smoothing:
        # The CPU reduces in the dtype of the logits: give it float32. The fused kernels do so themselves.
        wide = logits if mx.default_device() == mx.Device(mx.gpu) else logits.astype(mx.float32)
        return mx.fast.cross_entropy(wide, targets)
    logits = logits.astype(mx.float32)
    total = mx.logsumexp(logits, axis=-1)
    chosen = mx.take_along_axis(logits, targets[..., None], axis=-1).squeeze(-1)
    return (1 - smoothing) * (total - chosen) + smoothing * (total - logits.mean(axis=-1))


def _signed(targets: mx.array) -> mx.array:
    """Return the targets in a type that holds -1, any `ignore_index` and any number of classes."""
    if targets.dtype in (mx.int32, mx.int64):
        return targets
    return targets.astype(mx.int64 if targets.dtype in (mx.uint32, mx.uint64) else mx.int32)


def _broadcast(weights: mx.array, targets: mx.array) -> mx.array:
    try:
        return mx.broadcast_to(weights.astype(mx.float32), targets.shape)
    except ValueError:
        raise checks.refuse(
            "cross_entropy", f"weights must broadcast to targets' {targets.shape}, got {weights.shape}"
        ) from None


def _check(logits: mx.array, targets: mx.array, smoothing: float) -> None:
    where = "cross_entropy"
    if logits.ndim == 0 or logits.shape[:-1] != targets.shape:
        raise checks.refuse(
            where,
            f"targets must have logits' shape without its last axis, got {targets.shape} and {logits.shape}",
        )
    if logits.shape[-1] == 0:
        raise checks.refuse(where, f"logits must have at least one class, got {logits.shape}")
    if not mx.issubdtype(logits.dtype, mx.floating):
        raise TypeError(f"{where}: logits must be floating, got {logits.dtype}")
    if not mx.issubdtype(targets.dtype, mx.integer):
        raise TypeError(f"{where}: targets must be integers, got {targets.dtype}")
    checks.number(where, "label_smoothing", smoothing, least=0, below=1)
