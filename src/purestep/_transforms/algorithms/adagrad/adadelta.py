"""AdaDelta: gradients scaled to the size of recent updates."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from purestep._core import scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.core.quotients import nonzero
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


class ScaleByAdaDeltaState(NamedTuple):
    """State of `scale_by_adadelta`.

    Attributes:
        e_g: like params, float32, the running mean of squared gradients.
        e_x: like params, float32, the running mean of squared updates.
    """

    e_g: Tree
    e_x: Tree


def scale_by_adadelta(rho: float = 0.9, eps: float = 1e-6) -> GradientTransform:
    """Multiply gradients by the root mean square of past updates, divided by that of gradients.

    With `g` the gradient:

        e_g = rho * e_g + (1 - rho) * g ** 2
        update = g * sqrt(e_x + eps) / sqrt(e_g + eps)
        e_x = rho * e_x + (1 - rho) * update ** 2

    Args:
        rho: decay of both means, in [0, 1).
        eps: at least 0. With 0 every update is 0, because `e_x` starts at 0.

    Differences from optax:

    1. The state and the updates are float32 for gradients of any dtype.

    Reference: Zeiler, ADADELTA: an adaptive learning rate method, arXiv:1212.5701.

    >>> transform = scale_by_adadelta(rho=0.75, eps=1.0)
    >>> updates, state = transform.update({"w": mx.array(4.0)}, transform.init({"w": mx.array(0.0)}))
    >>> round(updates["w"].item(), 6), state.e_g["w"].item()  # 4 / sqrt(4 + 1)
    (1.788854, 4.0)
    """
    (rho,) = moments.decays("scale_by_adadelta", rho=rho)
    (eps,) = moments.epsilons("scale_by_adadelta", eps=eps)

    def init(params: Params) -> ScaleByAdaDeltaState:
        return ScaleByAdaDeltaState(moments.zeros(params), moments.zeros(params))

    def update(
        updates: Updates, state: ScaleByAdaDeltaState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdaDeltaState]:
        gradients = moments.float32(updates)
        e_g = moments.mean_square(gradients, state.e_g, rho)

        def scaled(g: mx.array, v: mx.array, x: mx.array) -> mx.array:
            steps, slopes = (scalars.flat_at_zero(mx.sqrt, each + eps) for each in (x, v))
            return steps / nonzero(g, slopes, eps) * g

        updates = tree.map(scaled, gradients, e_g, state.e_x)
        return updates, ScaleByAdaDeltaState(e_g, moments.mean_square(updates, state.e_x, rho))

    return checked("scale_by_adadelta", init, update, elementwise=True)


def adadelta(
    learning_rate: ScalarOrSchedule | None = None,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float | mx.array = 0.0,
    weight_decay_mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """Chain `add_decayed_weights`, `scale_by_adadelta` and `scale_by_learning_rate` (arXiv:1212.5701).

    The decay is added to the gradient and scaled with it, as in PyTorch.

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule; `None` is 1.
        rho, eps: as in `scale_by_adadelta`.
        weight_decay, weight_decay_mask: as in `add_decayed_weights`.

    Differences from optax:

    1. Without a learning rate, the optimizer descends at rate 1, as published. optax then omits
       `scale_by_learning_rate`, which also flips the sign, and ascends.

    >>> transform, params = adadelta(1.0), {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.003162
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_adadelta(rho, eps),
        scale_by_learning_rate(1.0 if learning_rate is None else learning_rate),
    )
