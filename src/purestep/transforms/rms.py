"""Gradients divided by the root of their squares: the late ones (RMSProp), or all of them (Adagrad)."""

from typing import NamedTuple

import mlx.core as mx

from purestep import checks, scalars, tree
from purestep.transforms import moments
from purestep.transforms.adam import bias_correction as gathered_weight
from purestep.transforms.base import GradientTransform, checked
from purestep.transforms.quotients import nonzero
from purestep.types import Params, Tree, Updates


class ScaleByRmsState(NamedTuple):
    """State of `scale_by_rms`.

    Attributes:
        count: 0-d int32, updates made; `()` without `bias_correction`.
        nu: like params, float32, the running mean of squared gradients.
    """

    count: mx.array | tuple[()]
    nu: Tree


class ScaleByRStdDevState(NamedTuple):
    """State of `scale_by_stddev`.

    Attributes:
        count: 0-d int32, updates made; `()` without `bias_correction`.
        mu: like params, float32, the running mean of gradients.
        nu: like params, float32, the running mean of squared gradients.
    """

    count: mx.array | tuple[()]
    mu: Tree
    nu: Tree


class ScaleByRssState(NamedTuple):
    """State of `scale_by_rss`.

    Attributes:
        sum_of_squares: like params, float32, the sum of all squared gradients and of where it began.
    """

    sum_of_squares: Tree


def scale_by_rms(
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransform:
    """Divide gradients by the root of their running mean square.

    Differences from optax:

    1. The mean, and so the updates, are float32 whatever the gradients' dtype.
    2. One state serves both settings of `bias_correction`: without `bias_correction` its count is `()`.

    With `g` the gradient and `t` the number of this update, counted from 1:

        nu = decay * nu + (1 - decay) * g ** 2          from nu = initial_scale
        update = g / sqrt(nu + eps), or g / (sqrt(nu) + eps) without eps_in_sqrt

    With `bias_correction`, `nu / (1 - decay ** t)` takes the place of `nu` in the second line.

    Args:
        decay: in [0, 1).
        eps: at least 0.
        initial_scale: where `nu` begins, at least 0.
        eps_in_sqrt: add `eps` inside the root.
        bias_correction: correct `nu` for its start; meant for an `initial_scale` of 0.

    Reference: Tieleman and Hinton, Lecture 6.5, Neural Networks for Machine Learning, 2012; Graves,
    arXiv:1308.0850.

    >>> transform = scale_by_rms(decay=0.75)
    >>> updates, state = transform.update({"w": mx.array(4.0)}, transform.init({"w": mx.array(0.0)}))
    >>> updates["w"], state.nu["w"]
    (array(2, dtype=float32), array(4, dtype=float32))
    """
    decay, eps, initial_scale = _numbers("scale_by_rms", decay, eps, initial_scale)

    def init(params: Params) -> ScaleByRmsState:
        return ScaleByRmsState(_first_count(bias_correction), moments.full_like(params, initial_scale))

    def update(
        updates: Updates, state: ScaleByRmsState, params: Params | None = None
    ) -> tuple[Updates, ScaleByRmsState]:
        gradients = moments.float32(updates)
        count, scale = _next(state.count, decay)
        nu = moments.mean_square(gradients, state.nu, decay)
        updates = tree.map(lambda g, v: _divide(g, _times(scale, v), eps, eps_in_sqrt), gradients, nu)
        return updates, ScaleByRmsState(count, nu)

    return checked("scale_by_rms", init, update)


def scale_by_stddev(
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransform:
    """Divide gradients by their running standard deviation: RMSProp, centered.

    Differences from optax:

    1. The means, and so the updates, are float32 whatever the gradients' dtype.
    2. A variance that rounding makes negative, as that of equal gradients, counts as 0; there it is NaN.
    3. One state serves both settings of `bias_correction`: without `bias_correction` its count is `()`.

    With `g` the gradient:

        mu = decay * mu + (1 - decay) * g
        nu = decay * nu + (1 - decay) * g ** 2          from nu = initial_scale
        variance = max(nu - mu ** 2, 0)
        update = g / sqrt(variance + eps), or g / (sqrt(variance) + eps) without eps_in_sqrt

    With `bias_correction`, both means are first divided by `1 - decay ** t`, with `t` the number of this
    update counted from 1. The variance of one gradient is then 0, so that the first update is bounded by
    `eps` alone, which is better large.

    Args:
        decay: in [0, 1).
        eps: at least 0.
        initial_scale: where `nu` begins, at least 0.
        eps_in_sqrt: add `eps` inside the root.
        bias_correction: correct both means for their start; meant for an `initial_scale` of 0.

    Reference: Graves, Generating sequences with recurrent neural networks, arXiv:1308.0850.

    >>> transform = scale_by_stddev(decay=0.5)
    >>> updates, state = transform.update({"w": mx.array(4.0)}, transform.init({"w": mx.array(0.0)}))
    >>> updates["w"], state.mu["w"], state.nu["w"]  # a variance of 8 - 2 ** 2
    (array(2, dtype=float32), array(2, dtype=float32), array(8, dtype=float32))
    """
    decay, eps, initial_scale = _numbers("scale_by_stddev", decay, eps, initial_scale)

    def init(params: Params) -> ScaleByRStdDevState:
        mu, nu = tree.zeros_like(params, mx.float32), moments.full_like(params, initial_scale)
        return ScaleByRStdDevState(_first_count(bias_correction), mu, nu)

    def update(
        updates: Updates, state: ScaleByRStdDevState, params: Params | None = None
    ) -> tuple[Updates, ScaleByRStdDevState]:
        gradients = moments.float32(updates)
        count, scale = _next(state.count, decay)
        mu = moments.mean(gradients, state.mu, decay)
        nu = moments.mean_square(gradients, state.nu, decay)

        def divided(g: mx.array, m: mx.array, v: mx.array) -> mx.array:
            variance = mx.maximum(_times(scale, v) - mx.square(_times(scale, m)), 0)
            return _divide(g, variance, eps, eps_in_sqrt)

        return tree.map(divided, gradients, mu, nu), ScaleByRStdDevState(count, mu, nu)

    return checked("scale_by_stddev", init, update)


def scale_by_rss(initial_accumulator_value: float = 0.1, eps: float = 1e-7) -> GradientTransform:
    """Divide gradients by the root of the sum of all their squares: Adagrad.

    Differences from optax:

    1. The sum, and so the updates, are float32 whatever the gradients' dtype.

    With `g` the gradient:

        sum = sum + g ** 2                              from sum = initial_accumulator_value
        update = g / sqrt(sum + eps) where sum > 0, else 0

    Args:
        initial_accumulator_value: at least 0.
        eps: at least 0.

    Reference: Duchi et al., Adaptive subgradient methods for online learning and stochastic
    optimization, JMLR 12, 2011; McMahan and Streeter, arXiv:1002.4908.

    >>> transform = scale_by_rss(initial_accumulator_value=0.0)
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for gradient in (3.0, 4.0):
    ...     updates, state = transform.update({"w": mx.array(gradient)}, state)
    >>> round(updates["w"].item(), 6), state.sum_of_squares["w"].item()
    (0.8, 25.0)
    """
    where = "scale_by_rss"
    initial_accumulator_value = checks.number(
        where, "initial_accumulator_value", initial_accumulator_value, least=0
    )
    eps = checks.number(where, "eps", eps, least=0)

    def init(params: Params) -> ScaleByRssState:
        return ScaleByRssState(moments.full_like(params, initial_accumulator_value))

    def update(
        updates: Updates, state: ScaleByRssState, params: Params | None = None
    ) -> tuple[Updates, ScaleByRssState]:
        gradients = moments.float32(updates)
        sums = tree.map(lambda g, s: s + mx.square(g), gradients, state.sum_of_squares)

        def divided(g: mx.array, s: mx.array) -> mx.array:
            # A sum of 0 is not divided by, so that no derivative becomes NaN; a NaN sum is.
            return mx.where(s == 0, 0.0, g / mx.sqrt(mx.where(s == 0, 1.0, s + eps)))

        return tree.map(divided, gradients, sums), ScaleByRssState(sums)

    return checked(where, init, update)


def _numbers(where: str, decay: float, eps: float, initial_scale: float) -> tuple[float, float, float]:
    decay = checks.number(where, "decay", decay, least=0, below=1)
    eps = checks.number(where, "eps", eps, least=0)
    return decay, eps, checks.number(where, "initial_scale", initial_scale, least=0)


def _first_count(counted: bool) -> mx.array | tuple[()]:
    return mx.array(0, mx.int32) if counted else ()  # mx.vmap and mx.grad refuse None


def _next(count: mx.array | tuple[()], decay: float) -> tuple[mx.array | tuple[()], mx.array | None]:
    """Return the next count, and by what a mean started at 0 is multiplied then."""
    if not isinstance(count, mx.array):
        return (), None
    following = scalars.increment(count)
    return following, 1 / gathered_weight(decay, following)


def _times(scale: mx.array | None, mean: mx.array) -> mx.array:
    return mean if scale is None else scale * mean


def _divide(gradient: mx.array, square: mx.array, eps: float, eps_in_sqrt: bool) -> mx.array:
    root = mx.sqrt(square + eps) if eps_in_sqrt else mx.sqrt(square) + eps
    return gradient / nonzero(gradient, root, eps)
