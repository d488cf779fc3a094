"""Gradient clipping and other bounds on updates."""

import mlx.core as mx

from purestep._core import checks, norms, scalars, sums, tree
from purestep._core.types import Params, Updates
from purestep._transforms.core.base import GradientTransform, checked, without_state
from purestep._transforms.core.leafwise import block_rms, leafwise
from purestep._transforms.core.quotients import factor_within


def clip_by_global_norm(max_norm: float) -> GradientTransform:
    """Scale all updates down together so that their joint Euclidean norm is at most `max_norm`.

    Each update becomes `u * max_norm / max(norm, max_norm)`. The norm is summed in float32 for all dtypes.
    There is no epsilon: updates within the bound are unchanged bit for bit. If the norm is not finite,
    because of one infinite element or a square beyond float32's range, every update becomes NaN, so the fault
    is visible.

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
            norm = grad_norm  # the updates are the gradients whose norm `train_step` has computed
        else:
            norm = norms.norm(updates)
        factor = factor_within(max_norm, norm)
        return tree.map(lambda u: (u * scalars.beside(factor, u)).astype(u.dtype), updates), state

    return checked("clip_by_global_norm", lambda params: (), update, elementwise=True)


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
        elementwise=True,
    )


def clip_by_block_rms(threshold: float | mx.array) -> GradientTransform:
    """Scale each array of updates down so that its root mean square is at most `threshold`.

    An array becomes `u * threshold / max(rms(u), threshold)`. The mean is computed in float32. An array
    within the bound is unchanged. An array whose root mean square is not finite becomes NaN, so the fault is
    visible.

    Differences from optax:

    1. In optax, an array with an infinite element becomes zeros and NaN.

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

    Let `G` and `W` be the gradient and the weights of one output unit. `G` becomes
    `G * min(clipping * max(|W|, eps) / |G|, 1)`.

    Differences from optax:

    1. Weights are [out, in], and [out, ..., in] for a convolution; in optax [in, out] and [..., in, out]. A
       unit is one index of the first axis, and its norm is taken over all other axes. An array with at most
       one axis longer than 1 is one unit.
    2. Arrays may have any number of axes. optax takes the norms of 3-D arrays over their first axis.
    3. A gradient within the bound is unchanged, and one whose norm is not finite becomes NaN.
    4. There is no second epsilon in the denominator. optax's has an effect if `clipping * eps` is below 1e-6.

    Args:
        clipping: greater than 0.
        eps: greater than 0, a lower bound on the weights' norm. Without it, weights that are zero could
            not change.
        axis: the axes over which norms are taken, the same for every array; `None`: those of a unit.

    Raises:
        ValueError: at update, if params is not given, or if an array has no such axis.

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
    """Replace each update that would make a parameter negative by the update that makes it 0.

    Place it last in a chain: a later transform must not increase an update.

    Raises:
        ValueError: at update, if params is not given.

    >>> params = {"w": mx.array([1.0, 1.0])}
    >>> keep_params_nonnegative().update({"w": mx.array([-0.5, -2.0])}, (), params)[0]
    {'w': array([-0.5, -1], dtype=float32)}
    """

    def bounded(update: mx.array, param: mx.array) -> mx.array:
        # Compared as a sum, which has the wider dtype: `-param` in the dtype of the update could be rounded.
        return mx.where(param + update < 0, -param, update)

    return leafwise("keep_params_nonnegative", bounded, elementwise=True)


def _unit_axes(array: mx.array) -> tuple[int, ...]:
    if sum(size != 1 for size in array.shape) <= 1:
        return tuple(range(array.ndim))
    return tuple(range(1, array.ndim))
