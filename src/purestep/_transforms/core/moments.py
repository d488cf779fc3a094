"""Running means of gradients and of their squares, as most adaptive transforms keep them: in float32."""

import math

import mlx.core as mx

from purestep._core import scalars, tree
from purestep._core.types import Params, Tree, Updates


def float32(updates: Updates) -> Tree:
    """Return the updates in float32."""
    return tree.map(lambda u: u.astype(mx.float32), updates)


def full_like(params: Params, value: float | mx.array) -> Tree:
    """Return float32 arrays of the same shapes that hold `value`."""
    return tree.map(lambda p: mx.full(p.shape, scalars.float32(value), mx.float32), params)


def mean(gradients: Tree, old: Tree, decay: float) -> Tree:
    """Return `decay * old + (1 - decay) * gradients`, in float32 whatever dtype the old one is stored in.

    >>> mean({"w": mx.array(4.0)}, {"w": mx.array(1.0, mx.float16)}, 0.5)
    {'w': array(2.5, dtype=float32)}
    """
    return tree.map(lambda g, m: decay * m.astype(mx.float32) + (1 - decay) * g, gradients, old)


def mean_square(gradients: Tree, old: Tree, decay: float) -> Tree:
    """Return `decay * old + (1 - decay) * gradients ** 2`.

    >>> mean_square({"w": mx.array(2.0)}, {"w": mx.array(0.0)}, 0.5)
    {'w': array(2, dtype=float32)}
    """
    return tree.map(lambda g, v: decay * v + (1 - decay) * mx.square(g), gradients, old)


def corrected(mean: Tree, decay: float, count: mx.array) -> Tree:
    """Divide a running mean that started at 0 by the weight that it has gathered in `count` updates."""
    scale = 1 / bias_correction(decay, count)
    return tree.map(lambda m: scale * m, mean)


def looking_ahead(mu: Tree, gradients: Tree, b1: float, count: mx.array) -> Tree:
    """Return the corrected mean of gradients one step of momentum later, as NAdam takes it."""
    scale = (1 - b1) / bias_correction(b1, count)
    next_scale = b1 / bias_correction(b1, scalars.increment(count))
    return tree.map(lambda m, g: next_scale * m + scale * g, mu, gradients)


def stored(mean: Tree, dtype: mx.Dtype | None) -> Tree:
    """Return the mean in the dtype in which a state keeps it; `None` leaves it as it is."""
    return mean if dtype is None else tree.map(lambda m: m.astype(dtype), mean)


def root(square: mx.array, eps_root: float | mx.array) -> mx.array:
    """Return `sqrt(square + eps_root)`, without an addition of nothing."""
    # MLX on a CPU fuses chains of at most 11 operations: what is not needed is left out.
    nothing = not isinstance(eps_root, mx.array) and eps_root == 0
    return mx.sqrt(square) if nothing else mx.sqrt(square + eps_root)


def bias_correction(decay: float | mx.array, count: mx.array) -> mx.array:
    """Return `1 - decay ** count`, the weight that a running mean started at zero has gathered, 0-d float32.

    Through `expm1`: taken literally in float32, `1 - 0.999` is wrong in the fifth digit.
    """
    if isinstance(decay, mx.array):
        rate = mx.log1p(decay - 1)
    else:
        rate = math.log(decay) if decay else -math.inf
    return -mx.expm1(rate * count.astype(mx.float32))
