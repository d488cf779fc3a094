"""AdaMax: Adam with the infinity norm."""

from collections.abc import Callable

import mlx.core as mx

from purestep._core import tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.algorithms.adam.adam import ScaleByAdamState, first_state
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.core.quotients import nonzero
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


def scale_by_adamax(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> GradientTransform:
    """Divide the running mean of gradients by a decaying maximum of their absolute values.

    With `g` the gradient and `t` the number of this update, counted from 1:

        mu = b1 * mu + (1 - b1) * g
        nu = max(b2 * nu, abs(g) + eps)
        update = (mu / (1 - b1 ** t)) / nu

    The state is a `ScaleByAdamState`; its `nu` is the decaying maximum.

    Args:
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the maximum, in [0, 1).
        eps: added to the absolute value, at least 0.

    Differences from optax:

    1. The state and the updates are float32 for gradients of any dtype.
    2. With an `eps` of 0, the update is 0, not NaN, for an element whose gradients have all been 0.

    Reference: Kingma and Ba, section 7.1, arXiv:1412.6980.

    >>> transform = scale_by_adamax()
    >>> updates, state = transform.update({"w": mx.array(5.0)}, transform.init({"w": mx.array(0.0)}))
    >>> round(updates["w"].item(), 6), state.nu["w"].item()
    (1.0, 5.0)
    """
    b1, b2 = moments.decays("scale_by_adamax", b1=b1, b2=b2)
    (eps,) = moments.epsilons("scale_by_adamax", eps=eps)

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdamState]:
        gradients, count, mu = moments.advance(updates, state.count, state.mu, b1)
        nu = tree.map(lambda g, v: mx.maximum(b2 * v, mx.abs(g) + eps), gradients, state.nu)
        updates = tree.map(lambda m, v: m / nonzero(m, v, eps), moments.corrected(mu, b1, count), nu)
        return updates, ScaleByAdamState(count, mu, nu)

    return checked("scale_by_adamax", first_state, update, elementwise=True)


def adamax(
    learning_rate: ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> GradientTransform:
    """Chain `scale_by_adamax` and `scale_by_learning_rate` (arXiv:1412.6980, section 7.1).

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, eps: as in `scale_by_adamax`.

    >>> transform, params = adamax(1e-3), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.001, dtype=float32)}
    """
    return chain(scale_by_adamax(b1, b2, eps), scale_by_learning_rate(learning_rate))


def adamaxw(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float | mx.array = 1e-4,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """Chain `scale_by_adamax`, `add_decayed_weights` and `scale_by_learning_rate`.

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, eps: as in `scale_by_adamax`.
        weight_decay, mask: as in `add_decayed_weights`; the decay is decoupled.

    Reference: Kingma and Ba, arXiv:1412.6980; Loshchilov and Hutter, arXiv:1711.05101.

    >>> transform, params = adamaxw(1e-3, weight_decay=0.1), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.0011, dtype=float32)}
    """
    return chain(
        scale_by_adamax(b1, b2, eps),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
