"""AdaMax: Adam with the infinity norm."""

from collections.abc import Callable

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.algorithms.adam.adam import ScaleByAdamState
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.core.quotients import nonzero
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


def scale_by_adamax(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> GradientTransform:
    """Divide the running mean of gradients by their largest size, which fades.

    Differences from optax:

    1. The state's arrays, and so the updates, are float32 whatever the gradients' dtype.

    With `g` the gradient and `t` the number of this update, counted from 1:

        mu = b1 * mu + (1 - b1) * g
        nu = max(b2 * nu, abs(g) + eps)
        update = (mu / (1 - b1 ** t)) / nu

    The state is a `ScaleByAdamState` whose `nu` is that largest size.

    Args:
        b1: decay of the mean of gradients, in [0, 1).
        b2: how the largest size fades, in [0, 1).
        eps: at least 0; with 0, an element that has only seen 0 stays (optax: NaN).

    Reference: Kingma and Ba, section 7.1, arXiv:1412.6980.

    >>> transform = scale_by_adamax()
    >>> updates, state = transform.update({"w": mx.array(5.0)}, transform.init({"w": mx.array(0.0)}))
    >>> round(updates["w"].item(), 6), state.nu["w"].item()
    (1.0, 5.0)
    """
    caller = "scale_by_adamax"
    b1 = checks.number(caller, "b1", b1, least=0, below=1)
    b2 = checks.number(caller, "b2", b2, least=0, below=1)
    eps = checks.number(caller, "eps", eps, least=0)

    def init(params: Params) -> ScaleByAdamState:
        zeros = [tree.zeros_like(params, mx.float32) for _ in range(2)]
        return ScaleByAdamState(mx.array(0, mx.int32), *zeros)

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdamState]:
        gradients = moments.float32(updates)
        count = scalars.increment(state.count)
        mu = moments.mean(gradients, state.mu, b1)
        nu = tree.map(lambda g, v: mx.maximum(b2 * v, mx.abs(g) + eps), gradients, state.nu)
        updates = tree.map(lambda m, v: m / nonzero(m, v, eps), moments.corrected(mu, b1, count), nu)
        return updates, ScaleByAdamState(count, mu, nu)

    return checked(caller, init, update)


def adamax(
    learning_rate: ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> GradientTransform:
    """`scale_by_adamax`, then `scale_by_learning_rate` (arXiv:1412.6980, section 7.1).

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        b1: as in `scale_by_adamax`, like the arguments that follow.
        b2: how the largest size fades.
        eps: added to the size.

    >>> transform = adamax(1e-3)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.001
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
    """`scale_by_adamax`, `add_decayed_weights`, then `scale_by_learning_rate`.

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        b1: as in `scale_by_adamax`, like the two arguments that follow.
        b2: how the largest size fades.
        eps: added to the size.
        weight_decay: at least 0.
        mask: which parameters decay, as in `add_decayed_weights`.

    Reference: Kingma and Ba, arXiv:1412.6980; Loshchilov and Hutter, arXiv:1711.05101.

    >>> transform = adamaxw(1e-3, weight_decay=0.1)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.0011
    """
    return chain(
        scale_by_adamax(b1, b2, eps),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
