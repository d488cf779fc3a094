"""Adan."""

from collections.abc import Callable

import mlx.core as mx

from purestep.transforms.adan import scale_by_adan
from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.transforms.weight_decay import add_decayed_weights
from purestep.types import Params, ScalarOrSchedule, Tree


def adan(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.98,
    b2: float = 0.92,
    b3: float = 0.99,
    eps: float = 1e-8,
    eps_root: float = 1e-8,
    weight_decay: float | mx.array = 0.0,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """`scale_by_adan`, `add_decayed_weights`, then `scale_by_learning_rate` (arXiv:2208.06677).

    Args:
        learning_rate: a number of at least 0, or a schedule.
        b1: as in `scale_by_adan`, like the arguments that follow.
        b2: decay of the mean of differences.
        b3: decay of the mean of squares.
        eps: added outside the root.
        eps_root: added inside the root; not 0 by default, as in optax.
        weight_decay: decoupled, at least 0.
        mask: which parameters decay, as in `add_decayed_weights`.

    >>> transform = adan(0.1)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    -0.1
    """
    return chain(
        scale_by_adan(b1, b2, b3, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
