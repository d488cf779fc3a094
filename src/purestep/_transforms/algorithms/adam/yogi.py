"""Yogi: Adam whose mean square moves by steps that do not depend on how far it is off."""

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Updates
from purestep._transforms.algorithms.adam.adam import ScaleByAdamState
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.core.quotients import nonzero
from purestep._transforms.pieces.scaling import scale_by_learning_rate


def scale_by_yogi(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-3,
    eps_root: float = 0.0,
    initial_accumulator_value: float = 1e-6,
) -> GradientTransform:
    """Rescale gradients as Adam does, with a mean square that cannot fall fast.

    Differences from optax:

    1. The state's arrays, and so the updates, are float32 whatever the gradients' dtype.

    With `g` the gradient and `t` the number of this update, counted from 1, from mu = nu =
    initial_accumulator_value:

        mu = b1 * mu + (1 - b1) * g
        nu = nu - (1 - b2) * sign(nu - g ** 2) * g ** 2
        update = (mu / (1 - b1 ** t)) / (sqrt(nu / (1 - b2 ** t) + eps_root) + eps)

    As in optax, `mu` begins where `nu` does, which the published algorithm has at 0, and both are
    corrected as if they had begun at 0.

    Args:
        b1: decay of the mean of gradients, in [0, 1).
        b2: 1 less the part of `g ** 2` by which `nu` moves, in [0, 1).
        eps: added outside the root, at least 0.
        eps_root: added inside the root, at least 0.
        initial_accumulator_value: where `mu` and `nu` begin, at least 0.

    Reference: Zaheer et al., Adaptive methods for nonconvex optimization, NeurIPS 2018.

    >>> transform = scale_by_yogi(b2=0.75, initial_accumulator_value=1.0)
    >>> _, state = transform.update({"w": mx.array(4.0)}, transform.init({"w": mx.array(0.0)}))
    >>> state.nu["w"]  # up by a quarter of 16
    array(5, dtype=float32)
    """
    caller = "scale_by_yogi"
    b1 = checks.number(caller, "b1", b1, least=0, below=1)
    b2 = checks.number(caller, "b2", b2, least=0, below=1)
    eps = checks.number(caller, "eps", eps, least=0)
    eps_root = checks.number(caller, "eps_root", eps_root, least=0)
    initial_accumulator_value = checks.number(
        caller, "initial_accumulator_value", initial_accumulator_value, least=0
    )

    def init(params: Params) -> ScaleByAdamState:
        starts = [moments.full_like(params, initial_accumulator_value) for _ in range(2)]
        return ScaleByAdamState(mx.array(0, mx.int32), *starts)

    def moved(g: mx.array, v: mx.array) -> mx.array:
        square = mx.square(g)
        return v - (1 - b2) * mx.sign(v - square) * square

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdamState]:
        gradients = moments.float32(updates)
        count = scalars.increment(state.count)
        mu = moments.mean(gradients, state.mu, b1)
        nu = tree.map(moved, gradients, state.nu)
        direction, square = moments.corrected(mu, b1, count), moments.corrected(nu, b2, count)
        updates = tree.map(
            lambda d, v: d / nonzero(d, moments.root(v, eps_root) + eps, eps), direction, square
        )
        return updates, ScaleByAdamState(count, mu, nu)

    return checked(caller, init, update)


def yogi(
    learning_rate: ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-3
) -> GradientTransform:
    """`scale_by_yogi`, then `scale_by_learning_rate` (Zaheer et al., NeurIPS 2018).

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        b1: as in `scale_by_yogi`, like the arguments that follow.
        b2: 1 less the part of the squared gradient by which its mean moves.
        eps: added outside the root.

    >>> import mlx.core as mx
    >>> transform = yogi(1e-3)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(50.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.001
    """
    return chain(scale_by_yogi(b1, b2, eps), scale_by_learning_rate(learning_rate))
