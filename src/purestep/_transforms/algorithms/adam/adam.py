"""Adam: gradients divided by the root of their running mean square."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.core.moments import bias_correction
from purestep._transforms.core.quotients import nonzero
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


class ScaleByAdamState(NamedTuple):
    """State of `scale_by_adam`.

    Attributes:
        count: 0-d int32, updates made.
        mu: like params, the running mean of gradients; float32 unless `mu_dtype` says otherwise.
        nu: like params, float32, the running mean of squared gradients.
    """

    count: mx.array
    mu: Tree
    nu: Tree


def scale_by_adam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransform:
    """Rescale gradients as Adam does, with both running means corrected for their start at zero.

    With `g` the gradient and `t` the number of this update, counted from 1:

        mu = b1 * mu + (1 - b1) * g
        nu = b2 * nu + (1 - b2) * g ** 2
        update = (mu / (1 - b1 ** t)) / (sqrt(nu / (1 - b2 ** t) + eps_root) + eps)

    With `nesterov`, the numerator is `b1 * mu / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1 ** t)`.

    The running means are float32 whatever the parameters' dtype, and so are the updates: rounding to
    the parameters' dtype happens once, in `apply_updates`.

    Args:
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        eps: added outside the root, at least 0; with 0, an element that has only seen 0 stays (optax: NaN).
        eps_root: added inside the root, at least 0; above 0 it keeps the update differentiable at 0.
        mu_dtype: the dtype in which `mu` is stored.
        nesterov: look ahead by one step of momentum (NAdam).

    Reference: Kingma and Ba, arXiv:1412.6980; Dozat, Incorporating Nesterov momentum into Adam, 2016.

    >>> transform = scale_by_adam()
    >>> updates, state = transform.update({"w": mx.array(5.0)}, transform.init({"w": mx.array(0.0)}))
    >>> round(updates["w"].item(), 6)
    1.0
    """
    caller = "scale_by_adam"
    b1 = checks.number(caller, "b1", b1, least=0, below=1)
    b2 = checks.number(caller, "b2", b2, least=0, below=1)
    eps = checks.number(caller, "eps", eps, least=0)
    eps_root = checks.number(caller, "eps_root", eps_root, least=0)

    def root(square: mx.array) -> mx.array:
        # MLX fuses chains of at most 11 operations: clip, Adam, decay and rate fit, with none to spare.
        rooted = isinstance(eps_root, mx.array) or eps_root  # an array is not asked for its value
        return mx.sqrt(square + eps_root) if rooted else mx.sqrt(square)

    def init(params: Params) -> ScaleByAdamState:
        return ScaleByAdamState(
            count=mx.array(0, mx.int32),
            mu=tree.zeros_like(params, mu_dtype or mx.float32),
            nu=tree.zeros_like(params, mx.float32),
        )

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdamState]:
        gradients = tree.map(lambda g: g.astype(mx.float32), updates)
        count = scalars.increment(state.count)
        mu = tree.map(lambda g, m: b1 * m.astype(mx.float32) + (1 - b1) * g, gradients, state.mu)
        nu = tree.map(lambda g, v: b2 * v + (1 - b2) * mx.square(g), gradients, state.nu)
        mu_scale, nu_scale = 1 / bias_correction(b1, count), 1 / bias_correction(b2, count)
        if nesterov:
            next_scale = 1 / bias_correction(b1, scalars.increment(count))
            direction = tree.map(lambda m, g: b1 * next_scale * m + (1 - b1) * mu_scale * g, mu, gradients)
        else:
            direction = tree.map(lambda m: mu_scale * m, mu)
        updates = tree.map(lambda d, v: d / nonzero(d, root(nu_scale * v) + eps, eps), direction, nu)
        if mu_dtype is not None:
            mu = tree.map(lambda m: m.astype(mu_dtype), mu)
        return updates, ScaleByAdamState(count, mu, nu)

    return checked(caller, init, update)


def adam(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransform:
    """`scale_by_adam`, then `scale_by_learning_rate`; bias-corrected, as published (arXiv:1412.6980).

    Args:
        learning_rate: a number of at least 0, or a schedule.
        b1: as in `scale_by_adam`, like the arguments that follow.
        b2: decay of the mean of squares.
        eps: added outside the root.
        eps_root: added inside the root.
        mu_dtype: the dtype in which the mean of gradients is stored.
        nesterov: NAdam's look-ahead.

    >>> transform = adam(1e-3)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.001
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    weight_decay: float | mx.array = 1e-4,
    mask: Tree | Callable[[Params], Tree] | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransform:
    """`scale_by_adam`, `add_decayed_weights`, then `scale_by_learning_rate` (arXiv:1711.05101).

    The decay is decoupled: each step takes `learning_rate * weight_decay` off a selected parameter.

    Args:
        learning_rate: a number of at least 0, or a schedule.
        b1: as in `scale_by_adam`, like the arguments that follow.
        b2: decay of the mean of squares.
        eps: added outside the root.
        eps_root: added inside the root.
        mu_dtype: the dtype in which the mean of gradients is stored.
        weight_decay: at least 0.
        mask: which parameters decay, as in `add_decayed_weights`; `transforms.matrices` spares vectors.
        nesterov: NAdam's look-ahead.

    >>> transform = adamw(1e-3, weight_decay=0.1)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(0.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.0001
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def nadam(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    *,
    nesterov: bool = True,
) -> GradientTransform:
    """`adam` with `nesterov`: `scale_by_adam`, then `scale_by_learning_rate`.

    The momentum is the constant `b1`. PyTorch's NAdam lets it rise to that; with a `momentum_decay` so large
    that it is there from the first step, the two are equal.

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        b1: as in `scale_by_adam`, like the arguments that follow.
        b2: decay of the mean of squares.
        eps: added outside the root.
        eps_root: added inside the root.
        mu_dtype: the dtype in which the mean of gradients is stored.
        nesterov: the look-ahead; without it this is `adam`.

    Reference: Dozat, Incorporating Nesterov momentum into Adam, 2016.

    >>> transform = nadam(1e-3)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)  # 0.9 * 0.1 / 0.19 + 0.1 / 0.1 rates
    -0.001474
    """
    return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)


def nadamw(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    weight_decay: float | mx.array = 1e-4,
    mask: Tree | Callable[[Params], Tree] | None = None,
    *,
    nesterov: bool = True,
) -> GradientTransform:
    """`adamw` with `nesterov`: `scale_by_adam`, `add_decayed_weights`, then `scale_by_learning_rate`.

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        b1: as in `scale_by_adam`, like the arguments that follow.
        b2: decay of the mean of squares.
        eps: added outside the root.
        eps_root: added inside the root.
        mu_dtype: the dtype in which the mean of gradients is stored.
        weight_decay: at least 0.
        mask: which parameters decay, as in `add_decayed_weights`.
        nesterov: the look-ahead; without it this is `adamw`.

    Reference: Dozat, 2016; Loshchilov and Hutter, arXiv:1711.05101.

    >>> transform = nadamw(1e-3, weight_decay=0.1)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.001574
    """
    return adamw(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=nesterov)
