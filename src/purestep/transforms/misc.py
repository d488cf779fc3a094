"""Schedules, centering, normalization, Polyak's step and optimism: each small and on its own."""

from typing import Literal, NamedTuple

import mlx.core as mx

from purestep import checks, scalars, sums, tree
from purestep.transforms.base import GradientTransform, checked, without_state
from purestep.transforms.quotients import nonzero
from purestep.transforms.scheduled import value_at
from purestep.types import Params, Schedule, Tree, Updates

_TINY = 2.0**-52  # squared norms up to this are no direction to step in


class ScaleByScheduleState(NamedTuple):
    """State of `scale_by_schedule`.

    Attributes:
        count: 0-d int32, updates made.
    """

    count: mx.array


def scale_by_schedule(step_size_fn: Schedule) -> GradientTransform:
    """Multiply updates by a schedule of the number of updates made before; the sign and dtypes stay.

    Args:
        step_size_fn: `count -> factor`.

    >>> from purestep.schedules import linear
    >>> transform = scale_by_schedule(linear(1.0, 0.0, 4))
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for _ in range(2):
    ...     updates, state = transform.update({"w": mx.array(2.0)}, state)
    >>> updates
    {'w': array(1.5, dtype=float32)}
    """
    checks.function("scale_by_schedule", "step_size_fn", step_size_fn)

    def update(
        updates: Updates, state: ScaleByScheduleState, params: Params | None = None
    ) -> tuple[Updates, ScaleByScheduleState]:
        factor = value_at("scale_by_schedule", "step_size_fn", step_size_fn, state.count)
        return tree.map(lambda u: (factor * u).astype(u.dtype), updates), ScaleByScheduleState(
            scalars.increment(state.count)
        )

    return checked("scale_by_schedule", lambda params: ScaleByScheduleState(mx.array(0, mx.int32)), update)


def centralize() -> GradientTransform:
    """Subtract from the gradient of each output unit its mean; vectors and 0-d arrays stay.

    The mean goes over all axes but the first: with [out, in] weights, over what a unit takes in, as the
    paper has it. (optax's goes over the same axes, which are the outputs of its [in, out] weights.)

    Reference: Yong et al., Gradient centralization, arXiv:2004.01461.

    >>> centralize().update({"w": mx.array([[1.0, 3.0], [0.0, 8.0]])}, ())[0]["w"]
    array([[-1, 1],
           [-4, 4]], dtype=float32)
    """

    def centered(update: mx.array) -> mx.array:
        if update.ndim < 2 or update.size == 0:
            return update
        wide = update.astype(mx.float32)
        return (wide - sums.mean(wide, tuple(range(1, update.ndim)), keepdims=True)).astype(update.dtype)

    return without_state("centralize", lambda updates, params: tree.map(centered, updates))


def normalize_by_update_norm(
    scale_factor: float | mx.array = 1.0, eps: float | mx.array = 1e-6
) -> GradientTransform:
    """Divide all updates by their joint norm: `scale_factor * u / (norm + eps)`, the norm in float32.

    Args:
        scale_factor: the norm that comes out; at least 0.
        eps: at least 0; updates of norm 0 stay 0 also without it (optax: NaN).

    >>> updates = {"a": mx.array(3.0), "b": mx.array(4.0)}
    >>> normalize_by_update_norm(eps=0.0).update(updates, ())[0]
    {'a': array(0.6, dtype=float32), 'b': array(0.8, dtype=float32)}
    """
    where = "normalize_by_update_norm"
    scale_factor = checks.number(where, "scale_factor", scale_factor, least=0)
    eps = checks.number(where, "eps", eps, least=0)

    def normalize(updates: Updates, params: Params | None) -> Updates:
        norm = tree.norm(updates)
        factor = scale_factor / nonzero(norm, norm + eps, eps)
        return tree.map(lambda u: (factor * u).astype(u.dtype), updates)

    return without_state(where, normalize)


def scale_by_polyak(
    f_min: float | mx.array = 0.0,
    max_learning_rate: float | mx.array = 1.0,
    eps: float | mx.array = 0.0,
    variant: Literal["sps", "sps+"] = "sps",
) -> GradientTransform:
    """Multiply updates by Polyak's step: the loss that is still to lose over the squared norm.

    `min((value - f_min) / (norm ** 2 + eps), max_learning_rate)`, with the gap not taken below 0 by
    `sps+`; 0 where `norm ** 2 + eps` is at most 2 ** -52.

    Args:
        f_min: the least value that the loss can have.
        max_learning_rate: greater than 0.
        eps: at least 0.
        variant: `sps` or `sps+`.

    Raises:
        ValueError: at update, if `value` is not given: the loss, 0-d, which `train_step` passes.

    Reference: Loizou et al., arXiv:2002.10542; sps+: Garrigos et al., arXiv:2307.14528.

    >>> transform = scale_by_polyak()
    >>> transform.update({"w": mx.array(2.0)}, (), value=mx.array(1.0))[0]
    {'w': array(0.5, dtype=float32)}
    """
    where = "scale_by_polyak"
    f_min = checks.number(where, "f_min", f_min)
    max_learning_rate = checks.number(where, "max_learning_rate", max_learning_rate, above=0)
    eps = checks.number(where, "eps", eps, least=0)
    if variant not in ("sps", "sps+"):
        raise checks.refuse(where, f"variant must be 'sps' or 'sps+', got {variant!r}")

    def update(
        updates: Updates,
        state: tuple[()],
        params: Params | None = None,
        *,
        value: mx.array | float | None = None,
    ) -> tuple[Updates, tuple[()]]:
        if value is None:
            raise checks.refuse(where, "value is needed: call update(..., value=loss)")
        gap = scalars.float32(value) - f_min
        if variant == "sps+":
            gap = mx.maximum(gap, 0)
        below = mx.square(tree.norm(updates)) + eps
        flat = below <= _TINY
        step = mx.where(flat, 0.0, mx.minimum(gap / mx.where(flat, 1.0, below), max_learning_rate))
        return tree.map(lambda u: (step * u).astype(u.dtype), updates), state

    return checked(where, lambda params: (), update)


class ScaleByOptimisticGradientState(NamedTuple):
    """State of `scale_by_optimistic_gradient`.

    Attributes:
        is_initial_step: 0-d bool, true before the first update.
        previous_gradient: like params, float32, what came in last.
    """

    is_initial_step: mx.array
    previous_gradient: Tree


def scale_by_optimistic_gradient(
    alpha: float | mx.array = 1.0, beta: float | mx.array = 1.0
) -> GradientTransform:
    """Step beyond the gradient by its change: `alpha * g + beta * (g - previous)`.

    The first update has no change. What is kept, and what comes out, is float32.

    Args:
        alpha: finite.
        beta: finite; 0 leaves `alpha * g`.

    Reference: Mokhtari et al., arXiv:1901.08511.

    >>> transform = scale_by_optimistic_gradient()
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for gradient in (1.0, 3.0):
    ...     updates, state = transform.update({"w": mx.array(gradient)}, state)
    >>> updates
    {'w': array(5, dtype=float32)}
    """
    alpha = checks.number("scale_by_optimistic_gradient", "alpha", alpha)
    beta = checks.number("scale_by_optimistic_gradient", "beta", beta)

    def init(params: Params) -> ScaleByOptimisticGradientState:
        return ScaleByOptimisticGradientState(mx.array(True), tree.zeros_like(params, mx.float32))

    def update(
        updates: Updates, state: ScaleByOptimisticGradientState, params: Params | None = None
    ) -> tuple[Updates, ScaleByOptimisticGradientState]:
        gradients = tree.map(lambda u: u.astype(mx.float32), updates)

        def ahead(g: mx.array, previous: mx.array) -> mx.array:
            return alpha * g + beta * (g - mx.where(state.is_initial_step, g, previous))

        updates = tree.map(ahead, gradients, state.previous_gradient)
        return updates, ScaleByOptimisticGradientState(mx.array(False), gradients)

    return checked("scale_by_optimistic_gradient", init, update)
