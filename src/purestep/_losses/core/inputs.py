"""Checks of the arrays that losses take, and their preparation in float32."""

import mlx.core as mx

from purestep._core import checks
from purestep._losses.core import validity, weighting


def array(caller: str, name: str, values: mx.array) -> None:
    """Raise a TypeError unless the argument is an array."""
    if not isinstance(values, mx.array):
        raise TypeError(f"{caller}: {name} must be an array, got {type(values).__name__}")


def floating(caller: str, name: str, values: mx.array) -> None:
    """Raise a TypeError unless the argument is an array of floating-point numbers."""
    array(caller, name, values)
    if not mx.issubdtype(values.dtype, mx.floating):
        raise TypeError(f"{caller}: {name} must be floating, got {values.dtype}")


def integers(caller: str, name: str, values: mx.array) -> None:
    """Raise a TypeError unless the argument is an array of integers."""
    array(caller, name, values)
    if not mx.issubdtype(values.dtype, mx.integer):
        raise TypeError(f"{caller}: {name} must be integers, got {values.dtype}")


def same_shape(caller: str, name: str, values: mx.array, like_name: str, like: mx.array) -> None:
    """Raise an error unless the argument is an array with the shape of `like`."""
    array(caller, name, values)
    if values.shape != like.shape:
        raise checks.error(caller, f"{name} must have {like_name}' shape {like.shape}, got {values.shape}")


def last_axis(caller: str, name: str, values: mx.array, of: str = "class") -> None:
    """Raise a ValueError unless the array has a last axis of at least one class, feature or item."""
    if values.ndim == 0 or values.shape[-1] == 0:
        raise checks.error(caller, f"{name} must have at least one {of}, got {values.shape}")


def one_each(caller: str, name: str, values: mx.array, classes: int) -> mx.array:
    """Return an array with one number for each class in float32; raise an error for another shape."""
    array(caller, name, values)
    if values.shape != (classes,):
        raise checks.error(caller, f"{name} must have shape ({classes},), got {values.shape}")
    return values.astype(mx.float32)


def labelled(
    caller: str, logits: mx.array, labels: mx.array, names: tuple[str, str] = ("logits", "targets")
) -> None:
    """Raise an error unless there is one label for each row of logits, and at least one class."""
    first, second = names
    array(caller, first, logits)
    array(caller, second, labels)
    if logits.ndim == 0 or logits.shape[:-1] != labels.shape:
        raise checks.error(
            caller,
            f"{second} must have {first}' shape without its last axis, got {labels.shape} and {logits.shape}",
        )
    last_axis(caller, first, logits)


def signed(labels: mx.array) -> mx.array:
    """Return integers in a signed dtype that can hold -1, any `ignore_index` and any number of classes."""
    if labels.dtype in (mx.int32, mx.int64):
        return labels
    return labels.astype(mx.int64 if labels.dtype in (mx.uint32, mx.uint64) else mx.int32)


def in_range(labels: mx.array, classes: int, weights: mx.array | None) -> tuple[mx.array, mx.array]:
    """Return labels clipped to [0, classes), and a factor that is NaN for each label outside that range."""
    clipped = mx.clip(labels, 0, classes - 1)
    return clipped, validity.nan_unless(clipped == labels, weights)


def classes(
    caller: str,
    logits: mx.array,
    labels: mx.array,
    weights: mx.array | None,
    names: tuple[str, str] = ("logits", "targets"),
    ignore_index: int | None = None,
) -> tuple[mx.array, mx.array, mx.array, mx.array | None]:
    """Check logits and integer labels, and prepare them for a loss.

    Args:
        caller: public name of the loss, for error messages.
        logits: floating [..., classes].
        labels: integer [...].
        weights: [...] or a shape that broadcasts to it.
        names: argument names of logits and labels, for error messages.
        ignore_index: labels of this value get weight 0.

    Returns:
        Logits in float32, 0 where the weight is 0; labels clipped to the valid range; a factor for the
        losses, NaN where a label with weight is out of range (see `validity.nan_unless`); the weights.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if logits are not floating, or labels not integers.
    """
    labelled(caller, logits, labels, names)
    floating(caller, names[0], logits)
    integers(caller, names[1], labels)
    labels = signed(labels)
    weights = weighting.broadcast(caller, weights, labels.shape, f"{names[1]}'")
    weights = weighting.ignoring(ignore_index, labels, weights)
    logits = weighting.masked(weights, logits.astype(mx.float32))
    labels, valid = in_range(labels, logits.shape[-1], weights)
    return logits, labels, valid, weights


def pair(
    caller: str,
    predictions: mx.array,
    targets: mx.array,
    weights: mx.array | None,
    names: tuple[str, str] = ("predictions", "targets"),
    *,
    fill: tuple[float, float] = (0.0, 0.0),
    ignore_index: int | None = None,
) -> tuple[mx.array, mx.array, mx.array | None]:
    """Check predictions and targets with one loss for each element, and return them in float32.

    Elements of weight 0 hold `fill`. Shapes must be equal and are never broadcast: [n, 1] against [n] would
    compare every prediction with every target.

    Raises:
        ValueError: if the shapes differ, or the weights do not broadcast to them.
        TypeError: if the predictions are not floating.
    """
    floating(caller, names[0], predictions)
    same_shape(caller, names[1], targets, names[0], predictions)
    weights = weighting.broadcast(caller, weights, predictions.shape)
    targets = targets.astype(mx.float32)
    weights = weighting.ignoring(ignore_index, targets, weights)
    predictions = weighting.masked(weights, predictions.astype(mx.float32), fill[0])
    return predictions, weighting.masked(weights, targets, fill[1]), weights


def rows(
    caller: str,
    predictions: mx.array,
    targets: mx.array,
    weights: mx.array | None,
    names: tuple[str, str],
    *,
    of: str = "class",
    fill: float = 0.0,
) -> tuple[mx.array, mx.array, mx.array | None]:
    """Check predictions and targets with one loss for each row, and return them in float32.

    Args:
        caller: public name of the loss, for error messages.
        predictions: floating [..., classes].
        targets: [..., classes].
        weights: [...] or a shape that broadcasts to it.
        names: argument names of predictions and targets, for error messages.
        of: name of one entry of the last axis, for error messages.
        fill: value of the targets in rows of weight 0; the predictions hold 0 there.

    Raises:
        ValueError: if the shapes differ, the last axis is empty, or the weights do not broadcast to the rows.
        TypeError: if the predictions are not floating.
    """
    floating(caller, names[0], predictions)
    same_shape(caller, names[1], targets, names[0], predictions)
    last_axis(caller, names[0], predictions, of)
    weights = weighting.broadcast(caller, weights, predictions.shape[:-1])
    predictions = weighting.masked(weights, predictions.astype(mx.float32))
    return predictions, weighting.masked(weights, targets.astype(mx.float32), fill), weights
