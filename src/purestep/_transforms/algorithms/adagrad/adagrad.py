"""Adagrad: gradients divided by the root of the sum of all their squares."""

from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import scale_by_learning_rate


class ScaleByRssState(NamedTuple):
    """State of `scale_by_rss`.

    Attributes:
        sum_of_squares: like params, float32, the initial value plus the sum of all squared gradients.
    """

    sum_of_squares: Tree


def scale_by_rss(initial_accumulator_value: float = 0.1, eps: float = 1e-7) -> GradientTransform:
    """Divide gradients by the root of the sum of all their squares: Adagrad.

    With `g` the gradient:

        sum = sum + g ** 2                              sum starts at initial_accumulator_value
        update = g / sqrt(sum + eps) where sum > 0, else 0

    Args:
        initial_accumulator_value: the first value of the sum, at least 0.
        eps: added inside the root, at least 0.

    Differences from optax:

    1. The state and the updates are float32 for gradients of any dtype.

    Reference: Duchi et al., Adaptive subgradient methods for online learning and stochastic
    optimization, JMLR 12, 2011; McMahan and Streeter, arXiv:1002.4908.

    >>> transform = scale_by_rss(initial_accumulator_value=0.0)
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for gradient in (3.0, 4.0):
    ...     updates, state = transform.update({"w": mx.array(gradient)}, state)
    >>> round(updates["w"].item(), 6), state.sum_of_squares["w"].item()
    (0.8, 25.0)
    """
    caller = "scale_by_rss"
    start = checks.number(caller, "initial_accumulator_value", initial_accumulator_value, least=0)
    (eps,) = moments.epsilons(caller, eps=eps)

    def init(params: Params) -> ScaleByRssState:
        return ScaleByRssState(moments.full_like(params, start))

    def update(
        updates: Updates, state: ScaleByRssState, params: Params | None = None
    ) -> tuple[Updates, ScaleByRssState]:
        gradients = moments.float32(updates)
        sums = tree.map(lambda g, s: s + mx.square(g), gradients, state.sum_of_squares)

        def divided(g: mx.array, s: mx.array) -> mx.array:
            # The division by a sum of 0 is avoided, so that derivatives are not NaN; a NaN in the sum stays.
            return mx.where(s == 0, 0.0, g / mx.sqrt(mx.where(s == 0, 1.0, s + eps)))

        return tree.map(divided, gradients, sums), ScaleByRssState(sums)

    return checked(caller, init, update, elementwise=True)


def adagrad(
    learning_rate: ScalarOrSchedule, initial_accumulator_value: float = 0.1, eps: float = 1e-7
) -> GradientTransform:
    """Chain `scale_by_rss` and `scale_by_learning_rate` (Duchi et al., JMLR 12, 2011).

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        initial_accumulator_value, eps: as in `scale_by_rss`.

    Differences from torch:

    1. PyTorch adds `eps` outside the root. With an `eps` of 0 the results are equal.

    >>> transform, params = adagrad(0.5, initial_accumulator_value=0.0), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(4.0)}, transform.init(params), params)[0]
    {'w': array(-0.5, dtype=float32)}
    """
    return chain(scale_by_rss(initial_accumulator_value, eps), scale_by_learning_rate(learning_rate))
