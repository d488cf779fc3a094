"""Prodigy: AdamW with a learning rate estimated from the distance to the solution."""

import math
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.algorithms.automatic.estimates import check_betas, correction, larger, total
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked, required, taking_extra
from purestep._transforms.core.quotients import nonzero
from purestep._transforms.pieces.scaling import ScaleByLearningRateState, scale_by_learning_rate


class ScaleByProdigyState(NamedTuple):
    """State of `scale_by_prodigy`.

    Attributes:
        exp_avg: like params, float32, the running mean of gradients times the estimate.
        exp_avg_sq: like params, float32, the running mean of their squares.
        grad_sum: like params, float32, the decayed sum of gradients in the denominator of the estimate.
        params0: the parameters given to `init`, in their dtypes.
        estim_lr: 0-d float32, the estimate of the distance to the solution: the base learning rate.
        numerator_weighted: 0-d float32, the decayed sum in the numerator of the estimate.
        count: 0-d int32, the number of updates.
        learning_rate: 0-d float32, the factor of the estimate, as in `ScaleByLearningRateState`.
    """

    exp_avg: Tree
    exp_avg_sq: Tree
    grad_sum: Tree
    params0: Tree
    estim_lr: mx.array
    numerator_weighted: mx.array
    count: mx.array
    learning_rate: mx.array


class ScheduledProdigyState(ScaleByProdigyState):
    """State of `scale_by_prodigy` with a schedule, which overwrites the learning rate at every update."""

    scheduled = True


def scale_by_prodigy(
    learning_rate: ScalarOrSchedule = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    beta3: float | None = None,
    eps: float = 1e-8,
    estim_lr0: float = 1e-6,
    estim_lr_coef: float = 1.0,
    weight_decay: float | mx.array = 0.0,
    safeguard_warmup: bool = False,
) -> GradientTransform:
    """Turn gradients into the steps of Prodigy, sign and learning rate included.

    With `g` the gradient, `x` the parameters, `x0` their first values, `d0 = estim_lr0` and `t` the number of
    this update, counted from 1:

        l = d * learning_rate * sqrt(1 - b2 ** t) / (1 - b1 ** t)
        r = beta3 * r + d / d0 * l * sum(g * (x0 - x))
        s = beta3 * s + l * d / d0 * g            (d instead of l with safeguard_warmup)
        m = b1 * m + (1 - b1) * d * g
        v = b2 * v + (1 - b2) * (d * g) ** 2
        d = max(d, estim_lr_coef * r / sum(abs(s)))
        update = -l * (m / (sqrt(v) + d * eps) + weight_decay * x)

    Both sums are over all parameters together.

    Args:
        learning_rate: a factor of the estimate, at least 0, or a schedule that starts at 1 and decreases.
        betas: decays of the two means, each in [0, 1).
        beta3: decay of both sums, in [0, 1); `None` is the root of the second beta.
        eps: multiplied by the estimate and added to the denominator, at least 0.
        estim_lr0: the first estimate, above 0. Estimates only grow, so choose a small one.
        estim_lr_coef: a factor of every later estimate, above 0.
        weight_decay: decoupled, at least 0.
        safeguard_warmup: omit the learning rate from `s`, for a schedule that starts with a warm-up.

    Raises:
        ValueError: at update, if params is not given.

    Differences from optax:

    1. Moments, scalars and updates are float32 for parameters of any dtype.
    2. While every gradient or learning rate has been zero, the estimate is unchanged. In optax it then
       becomes NaN (0 / 0) and stays NaN, for example with a warm-up that starts at 0.
    3. The learning rate is in the state, where it can be read and set.

    Reference: Mishchenko and Defazio, Prodigy, arXiv:2306.06101.

    >>> transform = scale_by_prodigy(estim_lr0=0.01)
    >>> params = {"w": mx.array(1.0)}
    >>> state = transform.init(params)
    >>> for _ in range(5):
    ...     updates, state = transform.update({"w": mx.array(3.0)}, state, params)
    ...     params = {"w": params["w"] + updates["w"]}
    >>> state.estim_lr > 0.01
    array(True, dtype=bool)
    """
    caller = "scale_by_prodigy"
    b1, b2 = check_betas(caller, betas)
    rate = scale_by_learning_rate(learning_rate)
    next_rate = taking_extra(rate)
    state_type = ScheduledProdigyState if callable(learning_rate) else ScaleByProdigyState
    (b3,) = moments.decays(caller, beta3=math.sqrt(b2) if beta3 is None else beta3)
    eps = checks.number(caller, "eps", eps, least=0)
    estim_lr0 = checks.number(caller, "estim_lr0", estim_lr0, above=0)
    estim_lr_coef = checks.number(caller, "estim_lr_coef", estim_lr_coef, above=0)
    weight_decay = checks.number(caller, "weight_decay", weight_decay, least=0)

    def init(params: Params) -> ScaleByProdigyState:
        mean, square, sums = (moments.zeros(params) for _ in range(3))
        first = scalars.float32(estim_lr0)
        return state_type(mean, square, sums, params, first, mx.array(0.0), *rate.init(params))

    def update(
        updates: Updates, state: ScaleByProdigyState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByProdigyState]:
        params = required(caller, params)
        _, (count, now) = next_rate((), ScaleByLearningRateState(state.count, state.learning_rate))
        old = state.estim_lr
        step = old * now * correction(b1, b2, count)
        g = moments.float32(updates)
        back = tree.map(lambda p0, p: p0.astype(mx.float32) - p.astype(mx.float32), state.params0, params)
        numerator = b3 * state.numerator_weighted + old / estim_lr0 * step * total(mx.multiply, g, back)
        weight = old / estim_lr0 * (old if safeguard_warmup else step)
        sums = tree.map(lambda s, x: b3 * s + weight * x, state.grad_sum, g)
        estimated = tree.map(lambda x: old * x, g)
        mean = moments.mean(estimated, state.exp_avg, b1)
        square = moments.mean_square(estimated, state.exp_avg_sq, b2)
        new = larger(old, estim_lr_coef * numerator, total(mx.abs, sums))

        def direction(m: mx.array, v: mx.array, p: mx.array) -> mx.array:
            root = scalars.flat_at_zero(mx.sqrt, v)
            return -step * (m / nonzero(m, root + new * eps, eps) + weight_decay * p.astype(mx.float32))

        updates = tree.map(direction, mean, square, params)
        return updates, state_type(mean, square, sums, state.params0, new, numerator, count, now)

    return checked(caller, init, update, elementwise=True)


def prodigy(
    learning_rate: ScalarOrSchedule = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    beta3: float | None = None,
    eps: float = 1e-8,
    estim_lr0: float = 1e-6,
    estim_lr_coef: float = 1.0,
    weight_decay: float | mx.array = 0.0,
    safeguard_warmup: bool = False,
) -> GradientTransform:
    """Return `scale_by_prodigy`, which includes the learning rate and the weight decay (arXiv:2306.06101).

    Args:
        learning_rate, betas, beta3, eps, estim_lr0, estim_lr_coef, weight_decay, safeguard_warmup: as in
            `scale_by_prodigy`.

    >>> transform, params = prodigy(estim_lr0=0.01), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.01, dtype=float32)}
    """
    return scale_by_prodigy(
        learning_rate, betas, beta3, eps, estim_lr0, estim_lr_coef, weight_decay, safeguard_warmup
    )
