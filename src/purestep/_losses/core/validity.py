"""Factors that make a loss NaN where its data are invalid, without reading the data."""

import mlx.core as mx

from purestep._core import sums

_TOLERANCE = 0.01  # allowed distance of a distribution's sum from 1, enough for rows in half precision


def nan_unless(valid: mx.array, weights: mx.array | None = None) -> mx.array:
    """Return a factor for the losses: 1 where they are valid or have zero weight, NaN elsewhere.

    Losses are multiplied by this factor, so that their gradient becomes NaN too. `mx.where` on the losses
    would give a gradient of zero, and an exception would have to wait for the device.

    >>> nan_unless(mx.array([True, False, False]), mx.array([1.0, 1.0, 0.0]))
    array([1, nan, 1], dtype=float32)
    """
    if weights is not None:
        valid = mx.logical_or(valid, weights == 0)
    return mx.where(valid, 1.0, mx.nan)


def distributions(targets: mx.array, weights: mx.array | None) -> mx.array:
    """Return a factor that is NaN for each row of the last axis that is not a distribution.

    A distribution has no negative entry and a sum of 1 to within 0.01. Rows of zero weight are not checked.
    """
    targets = mx.stop_gradient(targets)
    distance = mx.abs(sums.total(targets, -1) - 1)
    return nan_unless(mx.logical_and((targets >= 0).all(axis=-1), distance <= _TOLERANCE), weights)


def inside(values: mx.array) -> mx.array:
    """Return whether each value is in [0, 1]."""
    return mx.logical_and(values >= 0, values <= 1)
