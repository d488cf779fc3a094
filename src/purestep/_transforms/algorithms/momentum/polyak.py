"""Polyak's step size, from how far the loss is above its least value."""

from typing import Literal

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Updates
from purestep._transforms.algorithms.momentum.sgd import sgd
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain

_TINY = 2.0**-52  # squared norms up to this are no direction to step in


def scale_by_polyak(
    f_min: float | mx.array = 0.0,
    max_learning_rate: float | mx.array = 1.0,
    eps: float | mx.array = 0.0,
    variant: Literal["sps", "sps+"] = "sps",
) -> GradientTransform:
    """Multiply updates by Polyak's step: the loss that is still to lose over the squared norm.

    `min((value - f_min) / (norm ** 2 + eps), max_learning_rate)`, with the gap not taken below 0 by
    `sps+`; 0 where `norm ** 2 + eps` is at most 2 ** -52.

    Args:
        f_min: the least value that the loss can have.
        max_learning_rate: greater than 0.
        eps: at least 0.
        variant: `sps` or `sps+`.

    Raises:
        ValueError: at update, if `value` is not given: the loss, 0-d, which `train_step` passes.

    Reference: Loizou et al., arXiv:2002.10542; sps+: Garrigos et al., arXiv:2307.14528.

    >>> transform = scale_by_polyak()
    >>> transform.update({"w": mx.array(2.0)}, (), value=mx.array(1.0))[0]
    {'w': array(0.5, dtype=float32)}
    """
    caller = "scale_by_polyak"
    f_min = checks.number(caller, "f_min", f_min)
    max_learning_rate = checks.number(caller, "max_learning_rate", max_learning_rate, above=0)
    eps = checks.number(caller, "eps", eps, least=0)
    if variant not in ("sps", "sps+"):
        raise checks.error(caller, f"variant must be 'sps' or 'sps+', got {variant!r}")

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
        below = mx.square(tree.norm(updates)) + eps
        flat = below <= _TINY
        step = mx.where(flat, 0.0, mx.minimum(gap / mx.where(flat, 1.0, below), max_learning_rate))
        return tree.map(lambda u: (step * u).astype(u.dtype), updates), state

    return checked(caller, lambda params: (), update)


def polyak_sgd(
    max_learning_rate: float | mx.array = 1.0,
    scaling: ScalarOrSchedule = 1.0,
    f_min: float | mx.array = 0.0,
    eps: float | mx.array = 0.0,
    variant: Literal["sps", "sps+"] = "sps",
) -> GradientTransform:
    """`sgd` at the rate `scaling`, then `scale_by_polyak` of its updates (arXiv:2002.10542).

    `update` needs `value=loss`, which `train_step` passes.

    Args:
        max_learning_rate: as in `scale_by_polyak`.
        scaling: a number of at least 0, or a schedule; as the step divides by the squared norm of what
            it is given, it works as the inverse of a factor, and 1 is plain Polyak.
        f_min: the least value that the loss can have.
        eps: added to the squared norm.
        variant: `sps` or `sps+`.

    >>> transform = polyak_sgd()
    >>> params = {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params, value=mx.array(1.0))[0]
    {'w': array(-0.5, dtype=float32)}
    """
    return chain(sgd(scaling), scale_by_polyak(f_min, max_learning_rate, eps, variant))
