"""Adam: gradients divided by the root of their running mean square."""

import math
from typing import NamedTuple

import mlx.core as mx

from purestep import checks, scalars, tree
from purestep.transforms.base import GradientTransform, checked
from purestep.transforms.quotients import nonzero
from purestep.types import Params, Tree, Updates


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
    where = "scale_by_adam"
    b1 = checks.number(where, "b1", b1, least=0, below=1)
    b2 = checks.number(where, "b2", b2, least=0, below=1)
    eps = checks.number(where, "eps", eps, least=0)
    eps_root = checks.number(where, "eps_root", eps_root, least=0)

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

    return checked(where, init, update)


def bias_correction(decay: float | mx.array, count: mx.array) -> mx.array:
    """Return `1 - decay ** count`, the weight that a running mean started at zero has gathered, 0-d float32.

    Through `expm1`: taken literally in float32, `1 - 0.999` is wrong in the fifth digit.
    """
    if isinstance(decay, mx.array):
        rate = mx.log1p(decay - 1)
    else:
        rate = math.log(decay) if decay else -math.inf
    return -mx.expm1(rate * count.astype(mx.float32))
