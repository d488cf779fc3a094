"""How losses check, mask, weight and sum what they are given: the one place where they do.

A loss of this package is made in four moves: refuse what does not fit, `counts` to learn what each unit
weighs, `keep` to take the units of zero weight out of the arithmetic *before* it starts (a NaN there would
come back through the gradient, as zero times NaN), and `weighted` to sum.
"""

import mlx.core as mx

from purestep._core import checks, sums
from purestep._core.mean import Mean

_APART = 0.01  # from 1, the sum of what still counts as a distribution


def weighted(caller: str, losses: mx.array, weights: mx.array | None = None) -> Mean:
    """Return the weighted sum of losses, in float32, with the sum of their weights.

    Args:
        caller: the public name that the user called, for the errors.
        losses: [...], one for each unit.
        weights: [...] or a shape that broadcasts to it; none counts every unit once. A loss of zero
            weight is left out of value and gradient, also when it is infinite or NaN; what it was made of
            must have been through `keep` for the gradient to be free of NaN further up.

    Raises:
        ValueError: if the weights do not broadcast to the losses.

    >>> weighted("loss", mx.array([[1.0, 2.0], [3.0, 9.0]]), mx.array([[1.0, 1.0], [2.0, 0.0]])).value
    array(2.25, dtype=float32)
    """
    return Mean.of(losses, counts(caller, weights, losses.shape))


def counts(
    caller: str,
    weights: mx.array | None,
    shape: tuple[int, ...],
    like: str = "the losses'",
    name: str = "weights",
) -> mx.array | None:
    """Return what each unit weighs, float32 of this shape, or none when each weighs one.

    Args:
        caller: the public name that the user called, for the errors.
        weights: a shape that broadcasts to `shape`, booleans or numbers.
        shape: that of the units.
        like: whose shape that is, for the errors.
        name: what the argument is called, for the errors.

    Raises:
        ValueError: if the weights do not broadcast to the shape.
        TypeError: if they are not an array of numbers or booleans.
    """
    if weights is None:
        return None
    if not isinstance(weights, mx.array) or mx.issubdtype(weights.dtype, mx.complexfloating):
        got = weights.dtype if isinstance(weights, mx.array) else type(weights).__name__
        raise TypeError(f"{caller}: {name} must be an array of real numbers or booleans, got {got}")
    # Compared by hand: what broadcast_to raises cannot be told from other errors of the device.
    fits = weights.ndim <= len(shape) and all(
        have in (1, want) for have, want in zip(weights.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise checks.error(caller, f"{name} must broadcast to {like} {tuple(shape)}, got {weights.shape}")
    return mx.broadcast_to(weights.astype(mx.float32), shape)


def keep(counts: mx.array | None, values: mx.array, instead: float = 0.0) -> mx.array:
    """Return the values with a harmless constant in the place of every unit of zero weight.

    Args:
        counts: [...], what each unit weighs; none leaves the values as they are.
        values: [...] or [..., features], of any dtype.
        instead: what stands for a unit of zero weight: where the loss and its slope are finite.
    """
    if counts is None:
        return values
    counts = counts.reshape(*counts.shape, *(1,) * (values.ndim - counts.ndim))
    return mx.where(counts != 0, values, mx.array(instead, values.dtype))


def pair(
    caller: str, predictions: mx.array, targets: mx.array, weights: mx.array | None
) -> tuple[mx.array, mx.array, mx.array | None]:
    """Return predictions and targets of one shape in float32, zero where the weights are, and the weights.

    Raises:
        ValueError: if the shapes differ (nothing is broadcast: [n, 1] against [n] would compare all with
            all), or the weights do not broadcast to them.
        TypeError: if the predictions are not floating.
    """
    floating(caller, "predictions", predictions)
    same_shape(caller, "targets", targets, "predictions", predictions)
    weights = counts(caller, weights, predictions.shape)
    predictions, targets = predictions.astype(mx.float32), targets.astype(mx.float32)
    return keep(weights, predictions), keep(weights, targets), weights


def classes(
    caller: str,
    logits: mx.array,
    labels: mx.array,
    weights: mx.array | None,
    names: tuple[str, str] = ("logits", "targets"),
) -> tuple[mx.array, mx.array, mx.array, mx.array | None]:
    """Return logits in float32, labels within range, ones or NaN by whether each label was, and weights.

    A loss is multiplied by the third: a label out of range makes it NaN, and the gradient with it. A
    selection would give that gradient as zero, and a check would have to wait for the device.

    Args:
        caller: the public name that the user called, for the errors.
        logits: floating [..., classes].
        labels: integer [...].
        weights: [...] or a shape that broadcasts to it.
        names: what the arguments are called, for the errors.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if logits are not floating or labels not integers.
    """
    first, second = names
    labelled(caller, logits, labels, names)
    floating(caller, first, logits)
    integers(caller, second, labels)
    labels, count = signed(labels), logits.shape[-1]
    weights = counts(caller, weights, labels.shape, f"{second}'")
    valid = mx.logical_and(labels >= 0, labels < count)
    if weights is not None:
        valid = mx.logical_or(valid, weights == 0)
    logits = keep(weights, logits.astype(mx.float32))
    return logits, mx.clip(labels, 0, count - 1), mx.where(valid, 1.0, mx.nan), weights


def ignoring(index: int | None, labels: mx.array, counts: mx.array | None) -> mx.array | None:
    """Return what each label counts, if labels that are `index` count nothing; unsigned ones hold no -1."""
    if index is None:
        return counts
    kept = labels != index
    return kept.astype(mx.float32) if counts is None else mx.where(kept, counts, 0.0)


def chosen(logits: mx.array, labels: mx.array) -> mx.array:
    """Return the entry of the last axis that each label names: [..., classes] and [...] to [...]."""
    return mx.take_along_axis(logits, labels[..., None], axis=-1).squeeze(-1)


def log_softmax(logits: mx.array) -> mx.array:
    """Normalize logits, relative to the largest, so that what is likely keeps its digits near zero."""
    logits = logits - mx.stop_gradient(logits.max(axis=-1, keepdims=True))
    return logits - logsumexp(logits, keepdims=True)


def logsumexp(values: mx.array, *, keepdims: bool = False) -> mx.array:
    """Return that of the last axis; of a batch of nothing, which `mx.logsumexp` refuses, nothing."""
    if values.size == 0:
        return sums.total(values, -1, keepdims=keepdims)
    return mx.logsumexp(values, axis=-1, keepdims=keepdims)


def spared(targets: mx.array, logs: mx.array) -> mx.array:
    """Return the logs with 0 for those that are -inf and meet a target of 0, whose product would be NaN.

    Finite logs stay, also where the target is 0: they are the gradient with respect to the target.
    """
    return mx.where(mx.logical_and(targets == 0, mx.isinf(logs)), 0.0, logs)


def distributions(targets: mx.array, counts: mx.array | None) -> mx.array:
    """Return 1 for each row of the last axis that is a distribution, and NaN for others, to be multiplied in.

    No entry of a distribution is negative, and its sum is 1 to within 0.01, which covers rows that were
    normalized in half precision. A row of zero weight may be anything.
    """
    targets = mx.stop_gradient(targets)
    apart = mx.abs(sums.total(targets, -1) - 1)
    valid = mx.logical_and((targets >= 0).all(axis=-1), apart <= _APART)
    if counts is not None:
        valid = mx.logical_or(valid, counts == 0)
    return mx.where(valid, 1.0, mx.nan)


def between(values: mx.array) -> mx.array:
    """Return 1 where a value is in [0, 1], and NaN elsewhere, to be multiplied in."""
    return mx.where(mx.logical_and(values >= 0, values <= 1), 1.0, mx.nan)


def signed(labels: mx.array) -> mx.array:
    """Return integers in a type that holds -1, any index to ignore and any number of classes."""
    if labels.dtype in (mx.int32, mx.int64):
        return labels
    return labels.astype(mx.int64 if labels.dtype in (mx.uint32, mx.uint64) else mx.int32)


def labelled(
    caller: str, logits: mx.array, labels: mx.array, names: tuple[str, str] = ("logits", "targets")
) -> None:
    """Refuse labels without the shape of the logits' leading axes, and logits without a class."""
    first, second = names
    for name, values in ((first, logits), (second, labels)):
        array(caller, name, values)
    if logits.ndim == 0 or logits.shape[:-1] != labels.shape:
        raise checks.error(
            caller,
            f"{second} must have {first}' shape without its last axis, got {labels.shape} and {logits.shape}",
        )
    if logits.shape[-1] == 0:
        raise checks.error(caller, f"{first} must have at least one class, got {logits.shape}")


def floating(caller: str, name: str, values: mx.array) -> None:
    """Refuse what is not an array of floating numbers."""
    array(caller, name, values)
    if not mx.issubdtype(values.dtype, mx.floating):
        raise TypeError(f"{caller}: {name} must be floating, got {values.dtype}")


def integers(caller: str, name: str, values: mx.array) -> None:
    """Refuse what is not an array of integers."""
    array(caller, name, values)
    if not mx.issubdtype(values.dtype, mx.integer):
        raise TypeError(f"{caller}: {name} must be integers, got {values.dtype}")


def same_shape(caller: str, name: str, values: mx.array, like_name: str, like: mx.array) -> None:
    """Refuse an array that has not the shape of another."""
    array(caller, name, values)
    if values.shape != like.shape:
        raise checks.error(caller, f"{name} must have {like_name}' shape {like.shape}, got {values.shape}")


def array(caller: str, name: str, values: mx.array) -> None:
    """Refuse what is not an array."""
    if not isinstance(values, mx.array):
        raise TypeError(f"{caller}: {name} must be an array, got {type(values).__name__}")
