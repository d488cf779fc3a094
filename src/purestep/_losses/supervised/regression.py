"""Regression losses: squared and absolute errors, and the losses between the two."""

import math

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core import inputs, weighting


def squared_error(predictions: mx.array, targets: mx.array, *, weights: mx.array | None = None) -> Mean:
    """Return the mean squared error: `(prediction - target)^2`, over every element.

    Args:
        predictions: floating [...].
        targets: [...], of the same shape; nothing is broadcast.
        weights: [...] or a shape that broadcasts to it; elements of weight 0 are skipped, even if they
            are NaN.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the predictions are not floating.

    >>> squared_error(mx.array([1.0, 4.0]), mx.array([0.0, 0.0])).value
    array(8.5, dtype=float32)
    """
    errors, weights = _errors("squared_error", predictions, targets, weights)
    return weighting.mean("squared_error", mx.square(errors), weights)


def l2_loss(predictions: mx.array, targets: mx.array, *, weights: mx.array | None = None) -> Mean:
    """Return half the squared error, `(prediction - target)^2 / 2`; its gradient is the error.

    Args and Raises: as `squared_error`.

    >>> l2_loss(mx.array([1.0, 4.0]), mx.array([0.0, 0.0])).value
    array(4.25, dtype=float32)
    """
    errors, weights = _errors("l2_loss", predictions, targets, weights)
    return weighting.mean("l2_loss", 0.5 * mx.square(errors), weights)


def l1_loss(predictions: mx.array, targets: mx.array, *, weights: mx.array | None = None) -> Mean:
    """Return the mean absolute error: `|prediction - target|`. At an error of zero the gradient is zero.

    Args and Raises: as `squared_error`.

    >>> l1_loss(mx.array([1.0, -4.0]), mx.array([0.0, 0.0])).value
    array(2.5, dtype=float32)
    """
    errors, weights = _errors("l1_loss", predictions, targets, weights)
    return weighting.mean("l1_loss", mx.abs(errors), weights)


def huber_loss(
    predictions: mx.array, targets: mx.array, *, delta: float = 1.0, weights: mx.array | None = None
) -> Mean:
    """Return a loss that is quadratic for small errors, and linear with slope `delta` beyond `delta`.

        e^2 / 2                     where |e| <= delta
        delta (|e| - delta / 2)     elsewhere

    Args:
        predictions: as in `squared_error`.
        targets: as in `squared_error`.
        delta: greater than 0, in the units of the targets.
        weights: as in `squared_error`.

    Raises:
        ValueError: if the shapes do not fit, or delta is out of its range.
        TypeError: if the predictions are not floating.

    Reference: Huber, 1964, doi:10.1214/aoms/1177703732.

    >>> huber_loss(mx.array([1.0, 4.0]), mx.array([0.0, 0.0])).value
    array(2, dtype=float32)
    """
    delta = checks.number("huber_loss", "delta", delta, above=0)
    errors, weights = _errors("huber_loss", predictions, targets, weights)
    return weighting.mean("huber_loss", _huber(errors, delta), weights)


def smooth_l1_loss(
    predictions: mx.array, targets: mx.array, *, beta: float = 1.0, weights: mx.array | None = None
) -> Mean:
    """Return `huber_loss` with `delta = beta`, divided by `beta`: its slope is 1 beyond `beta`.

    Args:
        predictions: as in `squared_error`.
        targets: as in `squared_error`.
        beta: greater than 0, in the units of the targets.
        weights: as in `squared_error`.

    Raises: as `huber_loss`, with `beta` in place of `delta`.

    Reference: Girshick, arXiv:1504.08083.

    >>> smooth_l1_loss(mx.array([1.0, 4.0]), mx.array([0.0, 0.0]), beta=2.0).value
    array(1.625, dtype=float32)
    """
    beta = checks.number("smooth_l1_loss", "beta", beta, above=0)
    errors, weights = _errors("smooth_l1_loss", predictions, targets, weights)
    return weighting.mean("smooth_l1_loss", _huber(errors, beta) / beta, weights)


def log_cosh(predictions: mx.array, targets: mx.array, *, weights: mx.array | None = None) -> Mean:
    """Return the mean of `log(cosh(e))` of errors `e`: about `e^2 / 2` near zero, `|e| - log(2)` elsewhere.

    Args and Raises: as `squared_error`.

    >>> log_cosh(mx.array([1e4]), mx.array([0.0])).value
    array(9999.31, dtype=float32)
    """
    errors, weights = _errors("log_cosh", predictions, targets, weights)
    size = mx.abs(errors)
    # log(cosh(e)) = |e| + log1p(exp(-2|e|)) - log(2) loses every digit of a small error. Near zero the loss
    # is log1p(2 sinh(e/2)^2), from 1 + 2 sinh(e/2)^2 = cosh(e).
    small = size < 1
    near = mx.log1p(2 * mx.square(mx.sinh(mx.where(small, errors, 0.0) / 2)))
    far = size + mx.log1p(mx.exp(-2 * size)) - math.log(2)
    return weighting.mean("log_cosh", mx.where(small, near, far), weights)


def _errors(
    caller: str, predictions: mx.array, targets: mx.array, weights: mx.array | None
) -> tuple[mx.array, mx.array | None]:
    predictions, targets, weights = inputs.pair(caller, predictions, targets, weights)
    return predictions - targets, weights


def _huber(errors: mx.array, delta: float) -> mx.array:
    near = mx.clip(errors, -delta, delta)
    return near * (errors - 0.5 * near)
