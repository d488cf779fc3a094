"""Yogi: Adam with a mean square that changes by a fixed share of the new square."""

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, ScalarOrSchedule, Updates
from purestep._transforms.algorithms.adam.adam import ScaleByAdamState
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import scale_by_learning_rate


def scale_by_yogi(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-3,
    eps_root: float = 0.0,
    initial_accumulator_value: float = 1e-6,
) -> GradientTransform:
    """Rescale gradients as Adam does, with a mean square that falls slowly.

    With `g` the gradient and `t` the number of this update, counted from 1:

        mu = b1 * mu + (1 - b1) * g                         mu starts at initial_accumulator_value
        nu = nu - (1 - b2) * sign(nu - g ** 2) * g ** 2     nu starts at initial_accumulator_value
        update = (mu / (1 - b1 ** t)) / (sqrt(nu / (1 - b2 ** t) + eps_root) + eps)

    As in optax, `mu` starts at the same value as `nu`; in the paper it starts at 0. The bias corrections
    assume that both start at 0. The state is a `ScaleByAdamState`.

    Args:
        b1: decay of the mean of gradients, in [0, 1).
        b2: in [0, 1); `nu` moves by `(1 - b2) * g ** 2`.
        eps: added outside the root, at least 0.
        eps_root: added inside the root, at least 0.
        initial_accumulator_value: the first value of `mu` and `nu`, at least 0.

    Differences from optax:

    1. The state and the updates are float32 for gradients of any dtype.

    Reference: Zaheer et al., Adaptive methods for nonconvex optimization, NeurIPS 2018.

    >>> transform = scale_by_yogi(b2=0.75, initial_accumulator_value=1.0)
    >>> _, state = transform.update({"w": mx.array(4.0)}, transform.init({"w": mx.array(0.0)}))
    >>> state.nu["w"]  # 1 + 0.25 * 16
    array(5, dtype=float32)
    """
    caller = "scale_by_yogi"
    b1, b2 = moments.decays(caller, b1=b1, b2=b2)
    eps, eps_root = moments.epsilons(caller, eps=eps, eps_root=eps_root)
    start = checks.number(caller, "initial_accumulator_value", initial_accumulator_value, least=0)

    def init(params: Params) -> ScaleByAdamState:
        mu, nu = (moments.full_like(params, start) for _ in range(2))
        return ScaleByAdamState(mx.array(0, mx.int32), mu, nu)

    def moved(g: mx.array, v: mx.array) -> mx.array:
        square = mx.square(g)
        return v - (1 - b2) * mx.sign(v - square) * square

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdamState]:
        gradients, count, mu = moments.advance(updates, state.count, state.mu, b1)
        nu = tree.map(moved, gradients, state.nu)
        direction, square = moments.corrected(mu, b1, count), moments.corrected(nu, b2, count)
        updates = tree.map(lambda d, v: moments.rescaled(d, v, eps, eps_root), direction, square)
        return updates, ScaleByAdamState(count, mu, nu)

    return checked(caller, init, update, elementwise=True)


def yogi(
    learning_rate: ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-3
) -> GradientTransform:
    """Chain `scale_by_yogi` and `scale_by_learning_rate` (Zaheer et al., NeurIPS 2018).

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, eps: as in `scale_by_yogi`.

    >>> transform, params = yogi(1e-3), {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(50.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.001
    """
    return chain(scale_by_yogi(b1, b2, eps), scale_by_learning_rate(learning_rate))
