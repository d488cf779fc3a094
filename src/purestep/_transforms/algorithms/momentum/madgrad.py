"""MADGRAD: dual averaging with momentum, and a cube root where Adagrad has a square root."""

from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core.base import GradientTransform, checked, taking_extra
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import ScaleByLearningRateState, scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


class ScaleByMadgradState(NamedTuple):
    """State of `scale_by_madgrad`.

    Attributes:
        count: 0-d int32, updates made.
        learning_rate: 0-d float32, as in `ScaleByLearningRateState`.
        grad_sum_sq: like params, float32, the weighted sum of squared gradients.
        s: like params, float32, the weighted sum of gradients.
        x0: the parameters given to `init`, dtypes and all.
    """

    count: mx.array
    learning_rate: mx.array
    grad_sum_sq: Tree
    s: Tree
    x0: Tree


class ScheduledMadgradState(ScaleByMadgradState):
    """State of `scale_by_madgrad` under a schedule: the same fields, but the rate only shows."""

    scheduled = True


def scale_by_madgrad(
    learning_rate: ScalarOrSchedule, momentum: float = 0.9, eps: float = 1e-6
) -> GradientTransform:
    """Turn gradients into MADGRAD's steps, sign and learning rate included.

    With `g` the gradient, `x` the parameter, `x0` its start, `n` the updates made before:

        w = (learning_rate + eps) * sqrt(n + 1)
        G = G + w * g ** 2
        s = s + w * g
        z = x0 - s / (cbrt(G) + eps)
        update = (1 - momentum) * (z - x)

    It differs from optax in two points:

    1. `G`, `s` and the updates are float32.
    2. The learning rate is in the state, and can be read and set there.

    Args:
        learning_rate: a number of at least 0, or a schedule.
        momentum: in [0, 1).
        eps: above 0.

    Raises:
        ValueError: at update, if params is not given.

    Reference: Defazio and Jelassi, Adaptivity without compromise, arXiv:2101.11075.

    >>> transform = scale_by_madgrad(1.0, momentum=0.0, eps=1e-8)
    >>> params = {"w": mx.array(0.0)}
    >>> updates, _ = transform.update({"w": mx.array(8.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)  # 8 over the cube root of 64
    -2.0
    """
    caller = "scale_by_madgrad"
    rate = scale_by_learning_rate(learning_rate)
    next_rate = taking_extra(rate)
    state_type = ScheduledMadgradState if callable(learning_rate) else ScaleByMadgradState
    momentum = checks.number(caller, "momentum", momentum, least=0, below=1)
    eps = checks.number(caller, "eps", eps, above=0)

    def init(params: Params) -> ScaleByMadgradState:
        count, first = rate.init(params)
        sums = (tree.zeros_like(params, mx.float32) for _ in range(2))
        return state_type(count, first, *sums, x0=params)

    def update(
        updates: Updates, state: ScaleByMadgradState, params: Params | None = None
    ) -> tuple[Updates, ScaleByMadgradState]:
        if params is None:
            raise checks.error(caller, "params is needed: call update(updates, state, params)")
        _, (count, now) = next_rate((), ScaleByLearningRateState(state.count, state.learning_rate))
        weight = (now + eps) * mx.sqrt(count.astype(mx.float32))
        g = tree.map(lambda x: x.astype(mx.float32), updates)
        squares = tree.map(lambda a, x: a + weight * mx.square(x), state.grad_sum_sq, g)
        sums = tree.map(lambda a, x: a + weight * x, state.s, g)
        gone = tree.map(lambda a, q: a / (mx.power(q, 1 / 3) + eps), sums, squares)

        def step(d: mx.array, x: mx.array, x0: mx.array) -> mx.array:
            return (1 - momentum) * (x0.astype(mx.float32) - d - x.astype(mx.float32))

        updates = tree.map(step, gone, params, state.x0)
        return updates, state_type(count, now, squares, sums, state.x0)

    return checked(caller, init, update)


def madgrad(
    learning_rate: ScalarOrSchedule,
    momentum: float = 0.9,
    weight_decay: float | mx.array = 0.0,
    eps: float = 1e-6,
) -> GradientTransform:
    """`add_decayed_weights`, then `scale_by_madgrad`, which takes the learning rate (arXiv:2101.11075).

    The decay is added to the gradient; the authors advise less of it than for SGD, often none.

    Args:
        learning_rate: a number of at least 0, or a schedule.
        momentum: in [0, 1).
        weight_decay: at least 0.
        eps: above 0.

    >>> transform = madgrad(1.0, momentum=0.0, eps=1e-8)
    >>> params = {"w": mx.array(0.0)}
    >>> updates, _ = transform.update({"w": mx.array(8.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    -2.0
    """
    return chain(add_decayed_weights(weight_decay), scale_by_madgrad(learning_rate, momentum, eps))
