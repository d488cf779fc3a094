"""Running means of gradients and of their squares, in float32, and the correction of their bias."""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.quotients import nonzero

_TINY = 1e-30  # times the root of a scale, an epsilon from here on is a normal float32


def decays(caller: str, **values: Any) -> list[Any]:
    """Return the decays in their order; each must be in [0, 1).

    >>> decays("adam", b1=0.9, b2=0.999)
    [0.9, 0.999]
    """
    return [checks.number(caller, name, value, least=0, below=1) for name, value in values.items()]


def epsilons(caller: str, **values: Any) -> list[Any]:
    """Return the epsilons in their order; each must be at least 0.

    >>> epsilons("adam", eps=1e-8, eps_root=-1.0)
    Traceback (most recent call last):
        ...
    ValueError: adam: eps_root must be at least 0, got -1.0
    """
    return [checks.number(caller, name, value, least=0) for name, value in values.items()]


def float32(updates: Updates) -> Tree:
    """Return the updates in float32."""
    return tree.map(lambda u: u.astype(mx.float32), updates)


def zeros(params: Params, dtype: mx.Dtype | None = None) -> Tree:
    """Return the running mean before the first update: zeros, float32 unless `dtype` is given."""
    return tree.zeros_like(params, dtype or mx.float32)


def full_like(params: Params, value: float | mx.array) -> Tree:
    """Return float32 arrays of the same shapes that hold `value`."""
    return tree.map(lambda p: mx.full(p.shape, scalars.float32(value), mx.float32), params)


def mean(gradients: Tree, old: Tree, decay: float | mx.array) -> Tree:
    """Return `decay * old + (1 - decay) * gradients`, in float32 for every dtype of `old`.

    >>> mean({"w": mx.array(4.0)}, {"w": mx.array(1.0, mx.float16)}, 0.5)
    {'w': array(2.5, dtype=float32)}
    """
    kept, added = scalars.float32(decay), scalars.float32(1 - decay)  # once, not for each leaf
    return tree.map(lambda g, m: kept * m.astype(mx.float32) + added * g, gradients, old)


def mean_square(gradients: Tree, old: Tree, decay: float | mx.array) -> Tree:
    """Return `decay * old + (1 - decay) * gradients ** 2`.

    >>> mean_square({"w": mx.array(2.0)}, {"w": mx.array(0.0)}, 0.5)
    {'w': array(2, dtype=float32)}
    """
    kept, added = scalars.float32(decay), scalars.float32(1 - decay)
    return tree.map(lambda g, v: kept * v + added * mx.square(g), gradients, old)


def advance(updates: Updates, count: mx.array, mu: Tree, b1: float | mx.array) -> tuple[Tree, mx.array, Tree]:
    """Return the gradients in float32, the next count and the next mean of gradients.

    >>> advance({"w": mx.array(4.0, mx.float16)}, mx.array(0), {"w": mx.array(0.0)}, 0.75)
    ({'w': array(4, dtype=float32)}, array(1, dtype=int32), {'w': array(1, dtype=float32)})
    """
    gradients = float32(updates)
    return gradients, scalars.increment(count), mean(gradients, mu, b1)


def stored(mean: Tree, dtype: mx.Dtype | None) -> Tree:
    """Return the mean in the dtype in which the state stores it; `None` leaves it unchanged."""
    return mean if dtype is None else tree.map(lambda m: m.astype(dtype), mean)


def bias_correction(decay: float | mx.array, count: mx.array) -> mx.array:
    """Return `1 - decay ** count`, 0-d float32: the sum of the weights in a running mean that started at 0.

    It is computed with `expm1`: in float32, `1 - 0.999` is wrong in the fifth digit.
    """
    if isinstance(decay, mx.array):
        rate = mx.log1p(decay - 1)
    else:
        rate = math.log(decay) if decay else -math.inf
    return -mx.expm1(rate * count.astype(mx.float32))


def debias(decay: float | mx.array, count: mx.array) -> mx.array:
    """Return `1 / (1 - decay ** count)`, 0-d float32: the factor that corrects a mean that started at 0."""
    return 1 / bias_correction(decay, count)


def corrected(mean: Tree, decay: float | mx.array, count: mx.array) -> Tree:
    """Return a running mean that started at 0, corrected for its bias after `count` updates."""
    scale = debias(decay, count)
    return tree.map(lambda m: scale * m, mean)


def looking_ahead(mu: Tree, gradients: Tree, b1: float | mx.array, count: mx.array) -> Tree:
    """Return the bias-corrected Nesterov mean of gradients, as in NAdam."""
    scale = (1 - b1) / bias_correction(b1, count)
    next_scale = b1 / bias_correction(b1, scalars.increment(count))
    return tree.map(lambda m, g: next_scale * m + scale * g, mu, gradients)


def direction(mu: Tree, gradients: Tree, b1: float | mx.array, count: mx.array, *, nesterov: bool) -> Tree:
    """Return the bias-corrected mean of gradients; with `nesterov`, that of `looking_ahead`."""
    return looking_ahead(mu, gradients, b1, count) if nesterov else corrected(mu, b1, count)


def root(square: mx.array, eps_root: float | mx.array, scale: mx.array | None = None) -> mx.array:
    """Return `sqrt(square + eps_root / scale)`; nothing is added if `eps_root` is the Python number 0.

    Where the sum is 0, the derivative is 0.
    """
    # MLX fuses chains of at most 11 operations: the cast of a gradient, clipping, Adam, decay and learning
    # rate fit exactly. An array is not compared with 0: reading it would wait for the device.
    if not isinstance(eps_root, mx.array) and eps_root == 0:
        return scalars.flat_at_zero(mx.sqrt, square)
    total = square + (eps_root if scale is None else scalars.beside(eps_root / scale, square))
    return scalars.flat_at_zero(mx.sqrt, total)


def rescaled(
    direction: mx.array, square: mx.array, eps: float | mx.array, eps_root: float | mx.array = 0.0
) -> mx.array:
    """Return `direction / (sqrt(square + eps_root) + eps)`; 0, not NaN, where both sides are 0.

    >>> rescaled(mx.array([6.0, 0.0]), mx.array([4.0, 0.0]), eps=0.0)
    array([3, 0], dtype=float32)
    """
    return direction / nonzero(direction, root(square, eps_root) + eps, eps)


def rescaling(
    scale: mx.array, eps: float | mx.array, eps_root: float | mx.array
) -> Callable[[mx.array, mx.array], mx.array]:
    """Return `(direction, square) -> rescaled(sqrt(scale) * direction, scale * square, eps, eps_root)`.

    The scale is 0-d, above 0. Numerator and denominator are divided by its root: one operation less for each
    element.

    >>> rescaling(mx.array(9.0), 0.0, 0.0)(mx.array([6.0]), mx.array([4.0]))
    array([3], dtype=float32)
    """
    added = eps * mx.rsqrt(scale)  # here, and not for each leaf
    if not isinstance(eps, mx.array) and eps < _TINY:
        eps = 0.0  # the product with the root may round to 0

    def rescale(direction: mx.array, square: mx.array) -> mx.array:
        denominator = root(square, eps_root, scale) + scalars.beside(added, square)
        return direction / nonzero(direction, denominator, eps)

    return rescale
