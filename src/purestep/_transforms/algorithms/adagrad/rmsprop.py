"""RMSProp: gradients divided by the root of a running mean of their squares."""

from typing import NamedTuple

import mlx.core as mx

from purestep._core import scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked, identity
from purestep._transforms.core.combining import chain
from purestep._transforms.core.quotients import nonzero
from purestep._transforms.pieces.momentum import trace
from purestep._transforms.pieces.scaling import scale_by_learning_rate


class ScaleByRmsState(NamedTuple):
    """State of `scale_by_rms`.

    Attributes:
        count: 0-d int32, the number of updates; `()` without `bias_correction`.
        nu: like params, float32, the running mean of squared gradients.
    """

    count: mx.array | tuple[()]
    nu: Tree


class ScaleByRStdDevState(NamedTuple):
    """State of `scale_by_stddev`.

    Attributes:
        count: 0-d int32, the number of updates; `()` without `bias_correction`.
        mu: like params, float32, the running mean of gradients.
        nu: like params, float32, the running mean of squared gradients.
    """

    count: mx.array | tuple[()]
    mu: Tree
    nu: Tree


def scale_by_rms(
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransform:
    """Divide gradients by the root of their running mean square.

    With `g` the gradient and `t` the number of this update, counted from 1:

        nu = decay * nu + (1 - decay) * g ** 2          nu starts at initial_scale
        update = g / sqrt(nu + eps), or g / (sqrt(nu) + eps) without eps_in_sqrt

    With `bias_correction`, the second line uses `nu / (1 - decay ** t)` instead of `nu`.

    Args:
        decay: decay of the mean of squares, in [0, 1).
        eps: added inside or outside the root, at least 0.
        initial_scale: the first value of `nu`, at least 0.
        eps_in_sqrt: add `eps` inside the root.
        bias_correction: correct the bias of `nu`; meant for an `initial_scale` of 0.

    Differences from optax:

    1. The state and the updates are float32 for gradients of any dtype.
    2. One state class serves both settings of `bias_correction`; without it the count is `()`.

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

    return checked("scale_by_rms", init, update, elementwise=True)


def scale_by_stddev(
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransform:
    """Divide gradients by their running standard deviation: RMSProp, centered.

    With `g` the gradient:

        mu = decay * mu + (1 - decay) * g
        nu = decay * nu + (1 - decay) * g ** 2          nu starts at initial_scale
        variance = max(nu - mu ** 2, 0)
        update = g / sqrt(variance + eps), or g / (sqrt(variance) + eps) without eps_in_sqrt

    With `bias_correction`, both means are first divided by `1 - decay ** t`, with `t` the number of this
    update, counted from 1. The variance of a single gradient is 0, so only `eps` bounds the first update:
    choose a large `eps`.

    Args:
        decay, eps, initial_scale, eps_in_sqrt: as in `scale_by_rms`.
        bias_correction: correct the bias of both means; meant for an `initial_scale` of 0.

    Differences from optax:

    1. The state and the updates are float32 for gradients of any dtype.
    2. If rounding makes a variance negative, for example with equal gradients, it counts as 0. In optax it
       gives NaN.
    3. One state class serves both settings of `bias_correction`; without it the count is `()`.

    Reference: Graves, Generating sequences with recurrent neural networks, arXiv:1308.0850.

    >>> transform = scale_by_stddev(decay=0.5)
    >>> updates, state = transform.update({"w": mx.array(4.0)}, transform.init({"w": mx.array(0.0)}))
    >>> updates["w"], state.mu["w"], state.nu["w"]  # the variance is 8 - 2 ** 2
    (array(2, dtype=float32), array(2, dtype=float32), array(8, dtype=float32))
    """
    decay, eps, initial_scale = _numbers("scale_by_stddev", decay, eps, initial_scale)

    def init(params: Params) -> ScaleByRStdDevState:
        nu = moments.full_like(params, initial_scale)
        return ScaleByRStdDevState(_first_count(bias_correction), moments.zeros(params), nu)

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

    return checked("scale_by_stddev", init, update, elementwise=True)


def _numbers(caller: str, decay: float, eps: float, initial_scale: float) -> tuple[float, float, float]:
    """Return the three numbers, each within its range."""
    (decay,) = moments.decays(caller, decay=decay)
    eps, initial_scale = moments.epsilons(caller, eps=eps, initial_scale=initial_scale)
    return decay, eps, initial_scale


def _first_count(counted: bool) -> mx.array | tuple[()]:
    return mx.array(0, mx.int32) if counted else ()  # not None, which mx.vmap and mx.grad refuse


def _next(count: mx.array | tuple[()], decay: float) -> tuple[mx.array | tuple[()], mx.array | None]:
    """Return the next count and the factor that corrects the bias; `()` and `None` without a count."""
    if not isinstance(count, mx.array):
        return (), None
    following = scalars.increment(count)
    return following, moments.debias(decay, following)


def _times(scale: mx.array | None, mean: mx.array) -> mx.array:
    return mean if scale is None else scale * mean


def _divide(gradient: mx.array, square: mx.array, eps: float, eps_in_sqrt: bool) -> mx.array:
    root = scalars.flat_at_zero(mx.sqrt, square + eps if eps_in_sqrt else square)
    root = root if eps_in_sqrt else root + eps
    return gradient / nonzero(gradient, root, eps)


def rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: float | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> GradientTransform:
    """Chain `scale_by_rms`, `scale_by_learning_rate` and `trace`.

    With `centered`, `scale_by_stddev` replaces `scale_by_rms`. Without `momentum`, `trace` is omitted. The
    momentum is a sum of steps that include the learning rate: after a change of the rate, the step length
    changes gradually. With `eps_in_sqrt=False` and a constant rate, this is PyTorch's RMSprop with
    `alpha=decay`.

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        decay, eps, initial_scale, eps_in_sqrt, bias_correction: as in `scale_by_rms`.
        centered: divide by the standard deviation.
        momentum: the decay of `trace`, in [0, 1]; `None` omits it.
        nesterov: as in `trace`.

    Reference: Tieleman and Hinton, Lecture 6.5, 2012; centered: Graves, arXiv:1308.0850.

    >>> transform, params = rmsprop(0.5, decay=0.75), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(4.0)}, transform.init(params), params)[0]
    {'w': array(-1, dtype=float32)}
    """
    divide = scale_by_stddev if centered else scale_by_rms
    return chain(
        divide(decay, eps, initial_scale, eps_in_sqrt, bias_correction),
        scale_by_learning_rate(learning_rate),
        identity() if momentum is None else trace(momentum, nesterov),
    )
