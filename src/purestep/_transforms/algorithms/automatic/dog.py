"""DoG, layer-wise DoG and DoWG: step sizes from the distance to the start and the gradients so far."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, sums, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core.base import GradientTransform, checked, identity, required
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights

_INIT_STEPS = ("distance", "learning_rate", "heuristic")


class ScaleByDistanceOverGradientsState(NamedTuple):
    """State of `scale_by_distance_over_gradients`.

    Attributes:
        max_dist: a 0-d float32 for every parameter, its largest distance from its start so far.
        grad_sum_of_squares: a 0-d float32 for every parameter, the sum of the squares of all its gradients.
        init_params: like params, in `param_dtype`, the parameters given to `init`.
    """

    max_dist: Tree
    grad_sum_of_squares: Tree
    init_params: Tree


class ScaleByDoGState(NamedTuple):
    """State of `scale_by_dog`.

    Attributes:
        is_init_step: 0-d bool, true until the first update.
        init_params: the parameters given to `init`, in their dtypes.
        max_dist: 0-d float32, the largest distance of the parameters from `init_params` so far.
        sum_sq_norm_grads: 0-d float32, the sum of the squared norms of all gradients.
    """

    is_init_step: mx.array
    init_params: Tree
    max_dist: mx.array
    sum_sq_norm_grads: mx.array


class ScaleByDoWGState(NamedTuple):
    """State of `scale_by_dowg`.

    Attributes:
        init_params: the parameters given to `init`, in their dtypes.
        weighted_sq_norm_grads: 0-d float32, the sum of the gradients' squared norms, each multiplied by the
            `estim_sq_dist` of its update.
        estim_sq_dist: 0-d float32, the largest squared distance from the start so far.
    """

    init_params: Tree
    weighted_sq_norm_grads: mx.array
    estim_sq_dist: mx.array


def scale_by_distance_over_gradients(
    reps_rel: float = 1e-6,
    eps: float = 1e-8,
    param_dtype: mx.Dtype = mx.float32,
    global_scale: float = 1.0,
) -> GradientTransform:
    """Rescale each parameter's gradient by its own distance over its own gradients: layer-wise DoG.

    With `x` the parameter, `x0` its start and `g` its gradient, and `d = reps_rel * (1 + |x0|)` at first:

        d = max(d, |x - x0|)
        G = G + |g| ** 2
        update = global_scale * d / sqrt(G + eps) * g

    The paper recommends that an average of the parameters is evaluated.

    Args:
        reps_rel: sets the first step, above 0; the paper recommends 1e-4 with batch normalization and 1e-6
            without.
        eps: added inside the root, above 0.
        param_dtype: the dtype in which the start is stored.
        global_scale: a factor; `scale_by_learning_rate` changes the sign.

    Raises:
        ValueError: at update, if params is not given.

    Differences from optax:

    1. Both scalars of a parameter are 0-d and float32.

    Reference: Ivgi et al., DoG is SGD's best friend, arXiv:2302.12022.

    >>> transform = scale_by_distance_over_gradients(reps_rel=0.01)
    >>> params = {"w": mx.array(4.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)  # 0.01 * (1 + 4), for a gradient of any size
    0.05
    """
    caller = "scale_by_distance_over_gradients"
    reps_rel = checks.number(caller, "reps_rel", reps_rel, above=0)
    eps = checks.number(caller, "eps", eps, above=0)
    global_scale = checks.number(caller, "global_scale", global_scale)

    def init(params: Params) -> ScaleByDistanceOverGradientsState:
        return ScaleByDistanceOverGradientsState(
            max_dist=tree.map(lambda p: reps_rel * (1 + tree.norm(p)), params),
            grad_sum_of_squares=tree.map(lambda p: mx.array(0.0), params),
            init_params=tree.map(lambda p: p.astype(param_dtype), params),
        )

    def update(
        updates: Updates, state: ScaleByDistanceOverGradientsState, params: Params | None = None
    ) -> tuple[Updates, ScaleByDistanceOverGradientsState]:
        distance = tree.map(tree.norm, _from_start(caller, params, state.init_params))
        farthest = tree.map(mx.maximum, state.max_dist, distance)
        squares = tree.map(
            lambda s, g: s + sums.total(mx.square(g.astype(mx.float32))), state.grad_sum_of_squares, updates
        )
        rates = tree.map(lambda d, s: global_scale * d * mx.rsqrt(s + eps), farthest, squares)
        updates = tree.map(lambda r, g: (r * g).astype(g.dtype), rates, updates)
        return updates, ScaleByDistanceOverGradientsState(farthest, squares, state.init_params)

    return checked(caller, init, update)


def scale_by_dog(init_step: tuple[str, float], eps: float = 1e-8) -> GradientTransform:
    """Rescale gradients by the distance from the start over the root of the sum of their squared norms.

    With `x` all parameters together, `x0` their start and `g` the gradient:

        d = max(d, |x - x0|)
        G = G + |g| ** 2
        update = d / sqrt(G + eps) * g

    The paper recommends that an average of the parameters is evaluated. `init` reads the values of the
    parameters, not only their shapes.

    Args:
        init_step: a pair of a name and a number above 0. With ("distance", r), `d` is r at first. With
            ("heuristic", a), it is a * (1 + |x0|). With ("learning_rate", r), it is 0, and the first update
            is r * g.
        eps: added inside the root, above 0.

    Raises:
        ValueError: at update, if params is not given.

    Differences from optax:

    1. The scalars are float32 for parameters of any dtype.

    Reference: Ivgi et al., DoG is SGD's best friend, arXiv:2302.12022.

    >>> transform = scale_by_dog(("distance", 0.1))
    >>> params = {"a": mx.array(1.0), "b": mx.array(1.0)}
    >>> gradients = {"a": mx.array(3.0), "b": mx.array(4.0)}
    >>> updates, _ = transform.update(gradients, transform.init(params), params)
    >>> [round(update.item(), 5) for update in updates.values()]
    [0.06, 0.08]
    """
    caller = "scale_by_dog"
    if not isinstance(init_step, tuple) or len(init_step) != 2 or init_step[0] not in _INIT_STEPS:
        raise checks.error(
            caller, f"init_step must be a pair of one of {_INIT_STEPS} and a number, got {init_step!r}"
        )
    kind, value = init_step
    value = checks.number(caller, "init_step's number", value, above=0)
    eps = checks.number(caller, "eps", eps, above=0)

    def init(params: Params) -> ScaleByDoGState:
        start = value * (1 + tree.norm(params)) if kind == "heuristic" else scalars.float32(value)
        return ScaleByDoGState(
            is_init_step=mx.array(True),
            init_params=params,
            max_dist=mx.array(0.0) if kind == "learning_rate" else start,
            sum_sq_norm_grads=mx.array(0.0),
        )

    def update(
        updates: Updates, state: ScaleByDoGState, params: Params | None = None
    ) -> tuple[Updates, ScaleByDoGState]:
        farthest = mx.maximum(state.max_dist, tree.norm(_from_start(caller, params, state.init_params)))
        squares = state.sum_sq_norm_grads + mx.square(tree.norm(updates))
        rate = farthest * mx.rsqrt(squares + eps)
        if kind == "learning_rate":
            rate = mx.where(state.is_init_step, value, rate)
        updates = tree.map(lambda g: (rate * g).astype(g.dtype), updates)
        return updates, ScaleByDoGState(mx.array(False), state.init_params, farthest, squares)

    return checked(caller, init, update)


def scale_by_dowg(init_estim_sq_dist: float | None = None, eps: float = 1e-4) -> GradientTransform:
    """Rescale gradients by the squared distance from the start over the root of their weighted squared norms.

    With `x` all parameters together, `x0` their start and `g` the gradient:

        D = max(D, |x - x0| ** 2)
        G = G + D * |g| ** 2
        update = D / (sqrt(G) + eps) * g

    Args:
        init_estim_sq_dist: the first `D`, above 0; `None` means `eps`.
        eps: added to the divisor, above 0.

    Raises:
        ValueError: at update, if params is not given.

    Differences from optax:

    1. The scalars are float32 for parameters of any dtype.

    Reference: Khaled et al., DoWG unleashed, arXiv:2305.16284.

    >>> transform = scale_by_dowg(0.04, eps=1e-8)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(5.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    0.2
    """
    caller = "scale_by_dowg"
    eps = checks.number(caller, "eps", eps, above=0)
    start = eps if init_estim_sq_dist is None else init_estim_sq_dist
    start = checks.number(caller, "init_estim_sq_dist", start, above=0)

    def init(params: Params) -> ScaleByDoWGState:
        return ScaleByDoWGState(params, mx.array(0.0), scalars.float32(start))

    def update(
        updates: Updates, state: ScaleByDoWGState, params: Params | None = None
    ) -> tuple[Updates, ScaleByDoWGState]:
        distance = mx.square(tree.norm(_from_start(caller, params, state.init_params)))
        farthest = mx.maximum(state.estim_sq_dist, distance)
        squares = state.weighted_sq_norm_grads + farthest * mx.square(tree.norm(updates))
        rate = farthest / (mx.sqrt(squares) + eps)
        updates = tree.map(lambda g: (rate * g).astype(g.dtype), updates)
        return updates, ScaleByDoWGState(state.init_params, squares, farthest)

    return checked(caller, init, update)


def _from_start(caller: str, params: Params | None, start: Params) -> Tree:
    """Return `params - start`, in float32."""
    params = required(caller, params)
    return tree.map(lambda p, p0: p.astype(mx.float32) - p0.astype(mx.float32), params, start)


def dog(
    learning_rate: ScalarOrSchedule = 1.0,
    init_step: tuple[str, float] = ("heuristic", 1e-6),
    eps: float = 1e-8,
    weight_decay: float | mx.array | None = None,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """`add_decayed_weights` (if given), `scale_by_dog`, then `scale_by_learning_rate` (arXiv:2302.12022).

    The decay is added to the gradient, so it is part of the gradient's norm.

    Args:
        learning_rate: a factor on the step size, at least 0: a number, a 0-d array or a schedule.
        init_step, eps: as in `scale_by_dog`; the paper recommends ("heuristic", 1e-4) with batch
            normalization.
        weight_decay, mask: as in `add_decayed_weights`; `None` does not decay.

    >>> transform = dog(init_step=("distance", 0.1))
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    -0.1
    """
    decay = identity() if weight_decay is None else add_decayed_weights(weight_decay, mask)
    return chain(decay, scale_by_dog(init_step, eps), scale_by_learning_rate(learning_rate))


def dowg(
    learning_rate: ScalarOrSchedule = 1.0,
    init_estim_sq_dist: float | None = None,
    eps: float = 1e-4,
    weight_decay: float | mx.array | None = None,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """`add_decayed_weights` (if given), `scale_by_dowg`, then `scale_by_learning_rate` (arXiv:2305.16284).

    Args:
        learning_rate, weight_decay, mask: as in `dog`.
        init_estim_sq_dist, eps: as in `scale_by_dowg`.

    >>> transform = dowg(init_estim_sq_dist=0.04, eps=1e-8)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    -0.2
    """
    decay = identity() if weight_decay is None else add_decayed_weights(weight_decay, mask)
    return chain(decay, scale_by_dowg(init_estim_sq_dist, eps), scale_by_learning_rate(learning_rate))
