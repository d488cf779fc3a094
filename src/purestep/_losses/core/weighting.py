"""Weights and masks of losses, and the weighted mean.

A loss has four steps: check the arguments, `broadcast` the weights, replace units of zero weight by a
constant (`masked`), and sum the losses (`mean`). Masking comes before the arithmetic: a NaN in a unit of zero
weight would otherwise return through the gradient, as zero times NaN.
"""

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean


def mean(caller: str, losses: mx.array, weights: mx.array | None = None) -> Mean:
    """Return the weighted sum of losses, in float32, and the sum of their weights.

    Args:
        caller: public name of the loss, for error messages.
        losses: [...], one for each unit.
        weights: [...] or a shape that broadcasts to it; `None` gives each unit weight 1. A loss of zero
            weight is skipped, even if it is infinite or NaN. Its inputs must have passed `masked`, or the
            gradient may still be NaN.

    Raises:
        ValueError: if the weights do not broadcast to the losses.

    >>> mean("loss", mx.array([[1.0, 2.0], [3.0, 9.0]]), mx.array([[1.0, 1.0], [2.0, 0.0]])).value
    array(2.25, dtype=float32)
    """
    return Mean.of(losses, broadcast(caller, weights, losses.shape))


def broadcast(
    caller: str,
    weights: mx.array | None,
    shape: tuple[int, ...],
    like: str = "the losses'",
    name: str = "weights",
) -> mx.array | None:
    """Return the weight of each unit, float32 of the given shape; `None` stays `None`.

    Args:
        caller: public name of the loss, for error messages.
        weights: a shape that broadcasts to `shape`, booleans or numbers.
        shape: shape of the units.
        like: owner of that shape, for error messages.
        name: argument name of the weights, for error messages.

    Raises:
        ValueError: if the weights do not broadcast to the shape.
        TypeError: if the weights are not an array of real numbers or booleans.
    """
    if weights is None:
        return None
    if not isinstance(weights, mx.array) or mx.issubdtype(weights.dtype, mx.complexfloating):
        got = weights.dtype if isinstance(weights, mx.array) else type(weights).__name__
        raise TypeError(f"{caller}: {name} must be an array of real numbers or booleans, got {got}")
    # Shapes are compared here because an error of mx.broadcast_to looks like any other error of the device.
    fits = weights.ndim <= len(shape) and all(
        have in (1, want) for have, want in zip(weights.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise checks.error(caller, f"{name} must broadcast to {like} {tuple(shape)}, got {weights.shape}")
    return mx.broadcast_to(weights.astype(mx.float32), shape)


def masked(weights: mx.array | None, values: mx.array, fill: float = 0.0) -> mx.array:
    """Return the values, with `fill` in every unit of zero weight.

    Args:
        weights: [...], the weight of each unit; `None` returns the values unchanged.
        values: [...] or [..., features], of any dtype.
        fill: a value at which the loss and its slope are finite.
    """
    if weights is None:
        return values
    weights = weights.reshape(*weights.shape, *(1,) * (values.ndim - weights.ndim))
    return mx.where(weights != 0, values, mx.array(fill, values.dtype))


def ignoring(index: int | None, labels: mx.array, weights: mx.array | None) -> mx.array | None:
    """Return the weights with 0 for every label equal to `index`; unsigned labels never equal -1."""
    if index is None:
        return weights
    kept = labels != index
    return kept.astype(mx.float32) if weights is None else mx.where(kept, weights, 0.0)
