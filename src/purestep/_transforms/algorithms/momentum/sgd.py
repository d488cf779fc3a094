"""Stochastic gradient descent, with momentum or noise."""

import mlx.core as mx

from purestep._core.types import ScalarOrSchedule
from purestep._transforms.core.base import GradientTransform, identity
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.momentum import trace
from purestep._transforms.pieces.noise import add_noise
from purestep._transforms.pieces.scaling import scale_by_learning_rate


def sgd(
    learning_rate: ScalarOrSchedule,
    momentum: float | None = None,
    nesterov: bool = False,
    accumulator_dtype: mx.Dtype | None = None,
) -> GradientTransform:
    """Chain `trace`, if `momentum` is given, and `scale_by_learning_rate`.

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        momentum: the decay of `trace`, in [0, 1]; `None` omits it.
        nesterov, accumulator_dtype: as in `trace`.

    >>> transform, params = sgd(0.1, momentum=0.9), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.2, dtype=float32)}
    """
    first = identity() if momentum is None else trace(momentum, nesterov, accumulator_dtype)
    return chain(first, scale_by_learning_rate(learning_rate))


def noisy_sgd(
    learning_rate: ScalarOrSchedule,
    eta: float | mx.array = 0.01,
    gamma: float | mx.array = 0.55,
    key: mx.array | int | None = None,
) -> GradientTransform:
    """Chain `add_noise` and `scale_by_learning_rate` (arXiv:1511.06807).

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        eta, gamma, key: as in `add_noise`; `key` must be given.

    >>> transform, params = noisy_sgd(0.1, eta=0.0, key=0), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.2, dtype=float32)}
    """
    return chain(add_noise(eta, gamma, key), scale_by_learning_rate(learning_rate))
