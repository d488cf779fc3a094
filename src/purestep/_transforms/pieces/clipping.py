"""Bound the size of updates."""

import mlx.core as mx

from purestep._core import checks, scalars, sums, tree
from purestep._core.types import Params, Updates
from purestep._transforms.core.base import GradientTransform, checked, without_state
from purestep._transforms.core.leafwise import block_rms, leafwise
from purestep._transforms.core.quotients import factor_within


def clip_by_global_norm(max_norm: float) -> GradientTransform:
    """Scale all updates down together so that their joint Euclidean norm is at most `max_norm`.

    `u * max_norm / max(norm, max_norm)`, the norm summed in float32 whatever the leaves' dtypes. There
    is no epsilon: updates within the bound pass unchanged, to the bit. A norm that is not finite, from
    one infinite element or from squares beyond float32, makes every update NaN, so that it shows.

    Args:
        max_norm: greater than 0.

    Reference: Pascanu et al., arXiv:1211.5063.

    >>> updates, _ = clip_by_global_norm(1.0).update({"a": mx.array(3.0), "b": mx.array(4.0)}, ())
    >>> updates
    {'a': array(0.6, dtype=float32), 'b': array(0.8, dtype=float32)}
    """
    max_norm = checks.number("clip_by_global_norm", "max_norm", max_norm, above=0)

    def update(
        updates: Updates,
        state: tuple[()],
        params: Params | None = None,
        *,
        gradients: Updates = None,
        grad_norm: mx.array | None = None,
    ) -> tuple[Updates, tuple[()]]:
        if grad_norm is not None and updates is gradients:
            norm = grad_norm  # train_step has measured these very arrays
        else:
            norm = tree.norm(updates)
        factor = factor_within(max_norm, norm)
        return tree.map(lambda u: (u * factor).astype(u.dtype), updates), state

    return checked("clip_by_global_norm", lambda params: (), update)


def clip(max_delta: float | mx.array) -> GradientTransform:
    """Bound every element of the updates to `[-max_delta, max_delta]`.

    Args:
        max_delta: greater than 0.

    >>> clip(1.0).update({"w": mx.array([-3.0, 0.5])}, ())[0]
    {'w': array([-1, 0.5], dtype=float32)}
    """
    max_delta = checks.number("clip", "max_delta", max_delta, above=0)
    return without_state(
        "clip",
        lambda updates, params: tree.map(
            lambda u: mx.clip(u, -max_delta, max_delta).astype(u.dtype), updates
        ),
    )


def clip_by_block_rms(threshold: float | mx.array) -> GradientTransform:
    """Scale each array of updates down so that its root mean square is at most `threshold`.

    `u * threshold / max(rms(u), threshold)`, the mean taken in float32. An array within the bound passes
    unchanged; one whose root mean square is not finite becomes NaN, so that it shows (optax: some zeros).

    Args:
        threshold: greater than 0.

    Reference: Shazeer and Stern, Adafactor, arXiv:1804.04235, section 6.

    >>> clip_by_block_rms(1.0).update({"w": mx.array([3.0, -3.0])}, ())[0]
    {'w': array([1, -1], dtype=float32)}
    """
    threshold = checks.number("clip_by_block_rms", "threshold", threshold, above=0)

    def bounded(update: mx.array) -> mx.array:
        return (update * factor_within(threshold, block_rms(update))).astype(update.dtype)

    return without_state("clip_by_block_rms", lambda updates, params: tree.map(bounded, updates))


def adaptive_grad_clip(
    clipping: float | mx.array, eps: float | mx.array = 1e-3, axis: int | tuple[int, ...] | None = None
) -> GradientTransform:
    """Scale the gradient of each unit down to at most `clipping` times the norm of the unit's weights.

    With `G` and `W` the gradient and the weights of one output unit, `G` becomes
    `G * min(clipping * max(|W|, eps) / |G|, 1)`.

    Differences from optax:

    1. Weights are [out, in] (a convolution's [out, ..., in]): a unit is one index of the first axis, and
       its norm goes over all the others. An array with at most one axis longer than 1 is one unit.
    2. Arrays of any number of axes are taken, each but the first summed over; optax sums 3-D ones over
       their first axis alone.
    3. A gradient within the bound passes unchanged, one whose norm is not finite becomes NaN, and there
       is no second epsilon under the fraction: optax's is felt when `clipping * eps` is below 1e-6.

    Args:
        clipping: greater than 0.
        eps: greater than 0, the least norm that weights are taken to have: those at zero could not move.
        axis: the axes that a norm goes over, the same in every array.

    Raises:
        ValueError: at update, if params is not given, or an array has no such axis.

    Reference: Brock et al., High-performance large-scale image recognition without normalization,
    arXiv:2102.06171.

    >>> transform = adaptive_grad_clip(0.1)
    >>> params = {"w": mx.array([[3.0, 4.0], [0.3, 0.4]])}
    >>> transform.update({"w": mx.array([[0.0, 0.2], [0.0, 0.2]])}, (), params)[0]["w"]
    array([[0, 0.2],
           [0, 0.05]], dtype=float32)
    """
    caller = "adaptive_grad_clip"
    clipping = checks.number(caller, "clipping", clipping, above=0)
    eps = checks.number(caller, "eps", eps, above=0)
    given = axis if isinstance(axis, (tuple, list)) else (axis,)
    chosen = None if axis is None else tuple(checks.integer(caller, "axis", each) for each in given)

    def norms(array: mx.array) -> mx.array:
        axes = _unit_axes(array) if chosen is None else chosen
        if any(not -array.ndim <= each < array.ndim for each in axes):
            raise checks.error(
                caller, f"axis must be one of a parameter's axes, got {axis} for shape {array.shape}"
            )
        square = mx.square(array.astype(mx.float32))
        return scalars.root(sums.total(square, axes, keepdims=True))

    def bounded(update: mx.array, param: mx.array) -> mx.array:
        factor = factor_within(clipping * mx.maximum(norms(param), eps), norms(update))
        return (update * factor).astype(update.dtype)

    return leafwise(caller, bounded)


def keep_params_nonnegative() -> GradientTransform:
    """Replace each update that would make a parameter negative by the one that makes it 0.

    The last of a chain: what comes after it must not enlarge an update.

    Raises:
        ValueError: at update, if params is not given.

    >>> params = {"w": mx.array([1.0, 1.0])}
    >>> keep_params_nonnegative().update({"w": mx.array([-0.5, -2.0])}, (), params)[0]
    {'w': array([-0.5, -1], dtype=float32)}
    """

    def bounded(update: mx.array, param: mx.array) -> mx.array:
        # In the wider of both dtypes: minus the parameter, rounded, could lead below zero.
        return mx.where(param + update < 0, -param, update)

    return leafwise("keep_params_nonnegative", bounded)


def _unit_axes(array: mx.array) -> tuple[int, ...]:
    if sum(size != 1 for size in array.shape) <= 1:
        return tuple(range(array.ndim))
    return tuple(range(1, array.ndim))
