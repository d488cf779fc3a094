"""AdaBelief: gradients divided by how far they stray from their mean."""

from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.core.quotients import nonzero
from purestep._transforms.pieces.scaling import scale_by_learning_rate


class ScaleByBeliefState(NamedTuple):
    """State of `scale_by_belief`.

    Attributes:
        count: 0-d int32, updates made.
        mu: like params, float32, the running mean of gradients.
        nu: like params, float32, the running mean of the squared distance of gradients from `mu`.
    """

    count: mx.array
    mu: Tree
    nu: Tree


def scale_by_belief(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    *,
    nesterov: bool = False,
) -> GradientTransform:
    """Rescale gradients as Adam does, with the variance about the running mean in the root.

    Differences from optax:

    1. The means, and so the updates, are float32 whatever the gradients' dtype.

    With `g` the gradient and `t` the number of this update, counted from 1:

        mu = b1 * mu + (1 - b1) * g
        nu = b2 * nu + (1 - b2) * (g - mu) ** 2 + eps_root
        update = (mu / (1 - b1 ** t)) / (sqrt(nu / (1 - b2 ** t)) + eps)

    With `nesterov`, the numerator is `b1 * mu / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1 ** t)`.

    The published algorithm adds `eps_root` in the state as here, so that it gathers up. Gradients that
    hardly vary make steps much longer than the rate: that is the method, not an error.

    Args:
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of squared distances, in [0, 1).
        eps: added outside the root, at least 0.
        eps_root: added to `nu` at every update, at least 0.
        nesterov: look ahead by one step of momentum.

    Reference: Zhuang et al., AdaBelief optimizer, arXiv:2010.07468.

    >>> transform = scale_by_belief()
    >>> updates, _ = transform.update({"w": mx.array(5.0)}, transform.init({"w": mx.array(0.0)}))
    >>> round(updates["w"].item(), 4)  # 5 over its distance 4.5 from the mean
    1.1111
    """
    caller = "scale_by_belief"
    b1 = checks.number(caller, "b1", b1, least=0, below=1)
    b2 = checks.number(caller, "b2", b2, least=0, below=1)
    eps = checks.number(caller, "eps", eps, least=0)
    eps_root = checks.number(caller, "eps_root", eps_root, least=0)

    def init(params: Params) -> ScaleByBeliefState:
        zeros = [tree.zeros_like(params, mx.float32) for _ in range(2)]
        return ScaleByBeliefState(mx.array(0, mx.int32), *zeros)

    def update(
        updates: Updates, state: ScaleByBeliefState, params: Params | None = None
    ) -> tuple[Updates, ScaleByBeliefState]:
        gradients = moments.float32(updates)
        count = scalars.increment(state.count)
        mu = moments.mean(gradients, state.mu, b1)
        distance = tree.map(lambda g, m: g - m, gradients, mu)
        nu = tree.map(lambda v: v + eps_root, moments.mean_square(distance, state.nu, b2))
        if nesterov:
            direction = moments.looking_ahead(mu, gradients, b1, count)
        else:
            direction = moments.corrected(mu, b1, count)
        square = moments.corrected(nu, b2, count)
        updates = tree.map(lambda d, v: d / nonzero(d, mx.sqrt(v) + eps, eps), direction, square)
        return updates, ScaleByBeliefState(count, mu, nu)

    return checked(caller, init, update)


def adabelief(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    *,
    nesterov: bool = False,
) -> GradientTransform:
    """`scale_by_belief`, then `scale_by_learning_rate` (arXiv:2010.07468).

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        b1: as in `scale_by_belief`, like the arguments that follow.
        b2: decay of the mean of squared distances.
        eps: added outside the root.
        eps_root: added inside the root at every update.
        nesterov: look ahead by one step of momentum.

    >>> import mlx.core as mx
    >>> transform = adabelief(0.9)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -1.0
    """
    return chain(
        scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov), scale_by_learning_rate(learning_rate)
    )
