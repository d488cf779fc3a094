"""D-Adaptation: AdamW that raises its learning rate from a small first estimate."""

import math
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.algorithms.automatic.estimates import check_betas, correction, larger, total
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked, required, taking_extra
from purestep._transforms.pieces.scaling import ScaleByLearningRateState, scale_by_learning_rate


class ScaleByDAdaptState(NamedTuple):
    """State of `scale_by_dadapt`.

    Attributes:
        exp_avg: like params, float32, the running mean of gradients times the step size.
        exp_avg_sq: like params, float32, the running mean of squared gradients.
        grad_sum: like params, float32, a running mean like `exp_avg` that decays more slowly.
        estim_lr, numerator_weighted, count, learning_rate: as in `ScaleByProdigyState`.
    """

    exp_avg: Tree
    exp_avg_sq: Tree
    grad_sum: Tree
    estim_lr: mx.array
    numerator_weighted: mx.array
    count: mx.array
    learning_rate: mx.array


class ScheduledDAdaptState(ScaleByDAdaptState):
    """State of `scale_by_dadapt` with a schedule, which overwrites the learning rate at every update."""

    scheduled = True


def scale_by_dadapt(
    learning_rate: ScalarOrSchedule = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    estim_lr0: float = 1e-6,
    weight_decay: float | mx.array = 0.0,
) -> GradientTransform:
    """Turn gradients into the steps of D-adapted AdamW, sign and learning rate included.

    With `g` the gradient, `x` the parameters, `q = sqrt(b2)` and `t` the number of this update, counted from
    1:

        l = d * learning_rate * sqrt(1 - b2 ** t) / (1 - b1 ** t)
        r = q * r + (1 - q) * l * sum(g * s / (sqrt(v) + eps))
        m = b1 * m + (1 - b1) * l * g
        v = b2 * v + (1 - b2) * g ** 2
        s = q * s + (1 - q) * l * g
        d = max(d, r / ((1 - q) * sum(abs(s))))
        update = -m / (sqrt(v) + eps) - weight_decay * l * x

    Both sums are over all parameters together.

    Args:
        learning_rate, betas, estim_lr0, weight_decay: as in `scale_by_prodigy`.
        eps: added to the denominators, above 0.

    Raises:
        ValueError: at update, if params is not given.

    Differences from optax: those of `scale_by_prodigy`.

    Reference: Defazio and Mishchenko, Learning-rate-free learning by D-Adaptation, arXiv:2301.07733.

    >>> transform = scale_by_dadapt(estim_lr0=0.01)
    >>> params = {"w": mx.array(1.0)}
    >>> state = transform.init(params)
    >>> for _ in range(5):
    ...     updates, state = transform.update({"w": mx.array(3.0)}, state, params)
    >>> state.estim_lr > 0.01
    array(True, dtype=bool)
    """
    caller = "scale_by_dadapt"
    b1, b2 = check_betas(caller, betas)
    q = math.sqrt(b2)
    root = partial(scalars.flat_at_zero, mx.sqrt)
    rate = scale_by_learning_rate(learning_rate)
    next_rate = taking_extra(rate)
    state_type = ScheduledDAdaptState if callable(learning_rate) else ScaleByDAdaptState
    eps = checks.number(caller, "eps", eps, above=0)
    estim_lr0 = checks.number(caller, "estim_lr0", estim_lr0, above=0)
    weight_decay = checks.number(caller, "weight_decay", weight_decay, least=0)

    def init(params: Params) -> ScaleByDAdaptState:
        mean, square, sums = (moments.zeros(params) for _ in range(3))
        first = scalars.float32(estim_lr0)
        return state_type(mean, square, sums, first, mx.array(0.0), *rate.init(params))

    def update(
        updates: Updates, state: ScaleByDAdaptState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByDAdaptState]:
        params = required(caller, params)
        _, (count, now) = next_rate((), ScaleByLearningRateState(state.count, state.learning_rate))
        step = state.estim_lr * now * correction(b1, b2, count)
        g = moments.float32(updates)
        scaled = tree.map(lambda s, v: s / (root(v) + eps), state.grad_sum, state.exp_avg_sq)
        numerator = q * state.numerator_weighted + (1 - q) * step * total(mx.multiply, g, scaled)
        stepped = tree.map(lambda x: step * x, g)
        mean, sums = moments.mean(stepped, state.exp_avg, b1), moments.mean(stepped, state.grad_sum, q)
        square = moments.mean_square(g, state.exp_avg_sq, b2)
        new = larger(state.estim_lr, numerator, (1 - q) * total(mx.abs, sums))

        def direction(m: mx.array, v: mx.array, p: mx.array) -> mx.array:
            return -m / (root(v) + eps) - weight_decay * step * p.astype(mx.float32)

        updates = tree.map(direction, mean, square, params)
        return updates, state_type(mean, square, sums, new, numerator, count, now)

    return checked(caller, init, update, elementwise=True)


def dadapt_adamw(
    learning_rate: ScalarOrSchedule = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    estim_lr0: float = 1e-6,
    weight_decay: float | mx.array = 0.0,
) -> GradientTransform:
    """Return `scale_by_dadapt`, which includes the learning rate and the weight decay (arXiv:2301.07733).

    Args:
        learning_rate, betas, eps, estim_lr0, weight_decay: as in `scale_by_dadapt`.

    >>> transform, params = dadapt_adamw(estim_lr0=0.01), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.01, dtype=float32)}
    """
    return scale_by_dadapt(learning_rate, betas, eps, estim_lr0, weight_decay)
