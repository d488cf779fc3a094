"""AdaMax: Adam with the infinity norm."""

import mlx.core as mx

from purestep import checks, scalars, tree
from purestep.transforms import moments
from purestep.transforms.adam import ScaleByAdamState
from purestep.transforms.base import GradientTransform, checked
from purestep.transforms.quotients import nonzero
from purestep.types import Params, Updates


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
    where = "scale_by_adamax"
    b1 = checks.number(where, "b1", b1, least=0, below=1)
    b2 = checks.number(where, "b2", b2, least=0, below=1)
    eps = checks.number(where, "eps", eps, least=0)

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

    return checked(where, init, update)
