"""Polyak's step size, computed from the distance of the loss to its minimum."""

from typing import Literal

import mlx.core as mx

from purestep._core import checks, norms, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Updates
from purestep._transforms.algorithms.momentum.sgd import sgd
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain

_TINY = 2.0**-52  # up to this squared norm the step is 0


def scale_by_polyak(
    f_min: float | mx.array = 0.0,
    max_learning_rate: float | mx.array = 1.0,
    eps: float | mx.array = 0.0,
    variant: Literal["sps", "sps+"] = "sps",
) -> GradientTransform:
    """Multiply updates by Polyak's step size.

    The step size is `min((value - f_min) / (norm ** 2 + eps), max_learning_rate)`, or 0 if `norm ** 2 + eps`
    is at most 2 ** -52. With `sps+`, a negative `value - f_min` counts as 0.

    Args:
        f_min: the smallest value that the loss can have.
        max_learning_rate: the largest step size, greater than 0.
        eps: added to the squared norm, at least 0.
        variant: `sps` or `sps+`.

    Raises:
        ValueError: at update, without `value`, the 0-d loss, which `train_step` passes.

    Reference: Loizou et al., arXiv:2002.10542; sps+: Garrigos et al., arXiv:2307.14528.

    >>> transform = scale_by_polyak()
    >>> transform.update({"w": mx.array(2.0)}, (), value=mx.array(1.0))[0]
    {'w': array(0.5, dtype=float32)}
    """
    caller = "scale_by_polyak"
    f_min = checks.number(caller, "f_min", f_min)
    max_learning_rate = checks.number(caller, "max_learning_rate", max_learning_rate, above=0)
    eps = checks.number(caller, "eps", eps, least=0)
    checks.one_of(caller, "variant", variant, ("sps", "sps+"))

    def update(
        updates: Updates,
        state: tuple[()],
        params: Params | None = None,
        *,
        value: mx.array | float | None = None,
    ) -> tuple[Updates, tuple[()]]:
        if value is None:
            raise checks.error(caller, "value is needed: call update(..., value=loss)")
        gap = scalars.float32(value) - f_min
        if variant == "sps+":
            gap = mx.maximum(gap, 0)
        below = mx.square(norms.norm(updates)) + eps
        flat = below <= _TINY
        step = mx.where(flat, 0.0, mx.minimum(gap / mx.where(flat, 1.0, below), max_learning_rate))
        return tree.map(lambda u: (step * u).astype(u.dtype), updates), state

    return checked(caller, lambda params: (), update, elementwise=True)


def polyak_sgd(
    max_learning_rate: float | mx.array = 1.0,
    scaling: ScalarOrSchedule = 1.0,
    f_min: float | mx.array = 0.0,
    eps: float | mx.array = 0.0,
    variant: Literal["sps", "sps+"] = "sps",
) -> GradientTransform:
    """Chain `sgd`, with the learning rate `scaling`, and `scale_by_polyak` (arXiv:2002.10542).

    `update` needs `value=loss`, which `train_step` passes.

    Args:
        max_learning_rate, f_min, eps, variant: as in `scale_by_polyak`.
        scaling: the learning rate of `sgd`: a number of at least 0, a 0-d array or a schedule. Because the
            step size divides by the squared norm of the updates, updates are proportional to `1 / scaling`.
            With 1 this is Polyak's method.

    >>> transform = polyak_sgd()
    >>> params = {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params, value=mx.array(1.0))[0]
    {'w': array(-0.5, dtype=float32)}
    """
    return chain(sgd(scaling), scale_by_polyak(f_min, max_learning_rate, eps, variant))
