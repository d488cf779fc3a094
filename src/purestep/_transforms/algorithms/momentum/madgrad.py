"""MADGRAD: dual averaging with momentum and the cube root of the sum of squares."""

from functools import partial
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked, required, taking_extra
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import ScaleByLearningRateState, scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


class ScaleByMadgradState(NamedTuple):
    """State of `scale_by_madgrad`.

    Attributes:
        count: 0-d int32, the number of updates.
        learning_rate: 0-d float32, as in `ScaleByLearningRateState`.
        grad_sum_sq: like params, float32, the weighted sum of squared gradients.
        s: like params, float32, the weighted sum of gradients.
        x0: the parameters given to `init`, in their dtypes.
    """

    count: mx.array
    learning_rate: mx.array
    grad_sum_sq: Tree
    s: Tree
    x0: Tree


class ScheduledMadgradState(ScaleByMadgradState):
    """State of `scale_by_madgrad` with a schedule, which overwrites the learning rate at every update."""

    scheduled = True


def scale_by_madgrad(
    learning_rate: ScalarOrSchedule, momentum: float = 0.9, eps: float = 1e-6
) -> GradientTransform:
    """Turn gradients into the steps of MADGRAD, sign and learning rate included.

    With `g` the gradient, `x` the parameter, `x0` its first value and `n` the number of earlier updates:

        w = (learning_rate + eps) * sqrt(n + 1)
        G = G + w * g ** 2
        s = s + w * g
        z = x0 - s / (cbrt(G) + eps)
        update = (1 - momentum) * (z - x)

    Args:
        learning_rate: as in `scale_by_learning_rate`.
        momentum: in [0, 1).
        eps: added to the learning rate and to the denominator, above 0.

    Raises:
        ValueError: at update, if params is not given.

    Differences from optax:

    1. `G`, `s` and the updates are float32 for gradients of any dtype.
    2. The learning rate is in the state, where it can be read and set.

    Reference: Defazio and Jelassi, Adaptivity without compromise, arXiv:2101.11075.

    >>> transform, params = scale_by_madgrad(1.0, momentum=0.0, eps=1e-8), {"w": mx.array(0.0)}
    >>> transform.update({"w": mx.array(8.0)}, transform.init(params), params)[0]  # -8 / cbrt(64)
    {'w': array(-2, dtype=float32)}
    """
    caller = "scale_by_madgrad"
    rate = scale_by_learning_rate(learning_rate)
    next_rate = taking_extra(rate)
    state_type = ScheduledMadgradState if callable(learning_rate) else ScaleByMadgradState
    (momentum,) = moments.decays(caller, momentum=momentum)
    eps = checks.number(caller, "eps", eps, above=0)

    def init(params: Params) -> ScaleByMadgradState:
        count, first = rate.init(params)
        return state_type(count, first, moments.zeros(params), moments.zeros(params), x0=params)

    def update(
        updates: Updates, state: ScaleByMadgradState, params: Params | None = None
    ) -> tuple[Updates, ScaleByMadgradState]:
        params = required(caller, params)
        _, (count, now) = next_rate((), ScaleByLearningRateState(state.count, state.learning_rate))
        weight = (now + eps) * mx.sqrt(count.astype(mx.float32))
        g = moments.float32(updates)
        squares = tree.map(lambda a, x: a + weight * mx.square(x), state.grad_sum_sq, g)
        sums = tree.map(lambda a, x: a + weight * x, state.s, g)
        root = partial(scalars.flat_at_zero, lambda x: mx.power(x, 1 / 3))
        distance = tree.map(lambda a, q: a / (root(q) + eps), sums, squares)

        def step(d: mx.array, x: mx.array, x0: mx.array) -> mx.array:
            return (1 - momentum) * (x0.astype(mx.float32) - d - x.astype(mx.float32))

        updates = tree.map(step, distance, params, state.x0)
        return updates, state_type(count, now, squares, sums, state.x0)

    return checked(caller, init, update, elementwise=True)


def madgrad(
    learning_rate: ScalarOrSchedule,
    momentum: float = 0.9,
    weight_decay: float | mx.array = 0.0,
    eps: float = 1e-6,
) -> GradientTransform:
    """Chain `add_decayed_weights` and `scale_by_madgrad`, which applies the learning rate (arXiv:2101.11075).

    The decay is added to the gradient. The authors advise less decay than for SGD, often none.

    Args:
        learning_rate, momentum, eps: as in `scale_by_madgrad`.
        weight_decay: as in `add_decayed_weights`.

    >>> transform, params = madgrad(1.0, momentum=0.0, eps=1e-8), {"w": mx.array(0.0)}
    >>> transform.update({"w": mx.array(8.0)}, transform.init(params), params)[0]
    {'w': array(-2, dtype=float32)}
    """
    return chain(add_decayed_weights(weight_decay), scale_by_madgrad(learning_rate, momentum, eps))
