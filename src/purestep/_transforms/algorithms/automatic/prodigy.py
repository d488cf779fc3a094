"""Prodigy: AdamW that finds its learning rate by estimating the distance to the solution."""

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
        estim_lr, numerator_weighted, count, learning_rate: as in `ScaleByDAdaptState`.
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
    """State of `scale_by_prodigy` with a schedule, as `ScheduledDAdaptState`."""

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
    """Turn gradients into Prodigy's steps, with sign and learning rate.

    With `g` the gradient, `x` the parameters, `x0` their start, `d0 = estim_lr0`, `t` the number of this
    update, counted from 1, and `sum` over the elements of all parameters:

        l = d * learning_rate * sqrt(1 - b2 ** t) / (1 - b1 ** t)
        r = beta3 * r + d / d0 * l * sum(g * (x0 - x))
        s = beta3 * s + l * d / d0 * g            (d instead of l with safeguard_warmup)
        m = b1 * m + (1 - b1) * d * g
        v = b2 * v + (1 - b2) * (d * g) ** 2
        d = max(d, estim_lr_coef * r / sum(|s|))
        update = -l * (m / (sqrt(v) + d * eps) + weight_decay * x)

    Args:
        learning_rate, betas, estim_lr0, weight_decay: as in `scale_by_dadapt`.
        beta3: decay of both sums, in [0, 1); `None` is the square root of the second beta.
        eps: at least 0; the estimate times `eps` is added to the denominator.
        estim_lr_coef: a factor on every later estimate, above 0.
        safeguard_warmup: leave the learning rate out of `s`, for a schedule that starts with a warm-up.

    Raises:
        ValueError: at update, if params is not given.

    Differences from optax: those of `scale_by_dadapt`.

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
    b3 = math.sqrt(b2) if beta3 is None else beta3
    rate = scale_by_learning_rate(learning_rate)
    next_rate = taking_extra(rate)
    state_type = ScheduledProdigyState if callable(learning_rate) else ScaleByProdigyState
    b3 = checks.number(caller, "beta3", b3, least=0, below=1)
    eps = checks.number(caller, "eps", eps, least=0)
    estim_lr0 = checks.number(caller, "estim_lr0", estim_lr0, above=0)
    estim_lr_coef = checks.number(caller, "estim_lr_coef", estim_lr_coef, above=0)
    weight_decay = checks.number(caller, "weight_decay", weight_decay, least=0)

    def init(params: Params) -> ScaleByProdigyState:
        m, v, s = (moments.zeros(params) for _ in range(3))
        return state_type(m, v, s, params, scalars.float32(estim_lr0), mx.array(0.0), *rate.init(params))

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
            return -step * (m / nonzero(m, mx.sqrt(v) + new * eps, eps) + weight_decay * p.astype(mx.float32))

        updates = tree.map(direction, mean, square, params)
        return updates, state_type(mean, square, sums, state.params0, new, numerator, count, now)

    return checked(caller, init, update)


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
    """`scale_by_prodigy`, which applies the learning rate and the decay itself (arXiv:2306.06101).

    Args:
        learning_rate, betas, beta3, eps, estim_lr0: as in `scale_by_prodigy`.
        estim_lr_coef, weight_decay, safeguard_warmup: as in `scale_by_prodigy`.

    >>> transform = prodigy(estim_lr0=0.01)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    -0.01
    """
    return scale_by_prodigy(
        learning_rate, betas, beta3, eps, estim_lr0, estim_lr_coef, weight_decay, safeguard_warmup
    )
