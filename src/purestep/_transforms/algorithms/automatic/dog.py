"""DoG and its layer-wise form: step sizes from the distance moved and the norms of gradients."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, norms, scalars, sums, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core.base import GradientTransform, checked, identity, required
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights

_INIT_STEPS = ("distance", "learning_rate", "heuristic")


class ScaleByDistanceOverGradientsState(NamedTuple):
    """State of `scale_by_distance_over_gradients`.

    Attributes:
        max_dist: a 0-d float32 array for each parameter, its largest distance from its first value.
        grad_sum_of_squares: a 0-d float32 array for each parameter, the sum of squares of all its gradients.
        init_params: like params, in `param_dtype`, the parameters given to `init`.
    """

    max_dist: Tree
    grad_sum_of_squares: Tree
    init_params: Tree


class ScaleByDoGState(NamedTuple):
    """State of `scale_by_dog`.

    Attributes:
        is_init_step: 0-d bool, true before the first update.
        init_params: the parameters given to `init`, in their dtypes.
        max_dist: 0-d float32, the largest distance of the parameters from `init_params`.
        sum_sq_norm_grads: 0-d float32, the sum of the squared norms of all gradients.
    """

    is_init_step: mx.array
    init_params: Tree
    max_dist: mx.array
    sum_sq_norm_grads: mx.array


def scale_by_distance_over_gradients(
    reps_rel: float = 1e-6,
    eps: float = 1e-8,
    param_dtype: mx.Dtype = mx.float32,
    global_scale: float = 1.0,
) -> GradientTransform:
    """Rescale the gradient of each parameter by the distance that this parameter moved: layer-wise DoG.

    With `x` the parameter, `x0` its first value, `g` its gradient, and `d` initially
    `reps_rel * (1 + norm(x0))`:

        d = max(d, norm(x - x0))
        G = G + norm(g) ** 2
        update = global_scale * d / sqrt(G + eps) * g

    The authors advise evaluation with an average of the parameters, such as `averaged`.

    Args:
        reps_rel: determines the first step, above 0; the authors advise 1e-4 with batch normalization and
            1e-6 without.
        eps: added to `G`, above 0.
        param_dtype: the dtype in which `x0` is stored.
        global_scale: a factor of the updates, which have the sign of the gradients.

    Raises:
        ValueError: at update, if params is not given.

    Differences from optax:

    1. Both scalars of a parameter are 0-d and float32.

    Reference: Ivgi et al., DoG is SGD's best friend, arXiv:2302.12022.

    >>> transform, params = scale_by_distance_over_gradients(reps_rel=0.01), {"w": mx.array(4.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]  # 0.01 * (1 + 4)
    {'w': array(0.05, dtype=float32)}
    """
    caller = "scale_by_distance_over_gradients"
    reps_rel = checks.number(caller, "reps_rel", reps_rel, above=0)
    eps = checks.number(caller, "eps", eps, above=0)
    global_scale = checks.number(caller, "global_scale", global_scale)

    def init(params: Params) -> ScaleByDistanceOverGradientsState:
        return ScaleByDistanceOverGradientsState(
            max_dist=tree.map(lambda p: reps_rel * (1 + norms.norm(p)), params),
            grad_sum_of_squares=tree.map(lambda p: mx.array(0.0), params),
            init_params=tree.map(lambda p: p.astype(param_dtype), params),
        )

    def update(
        updates: Updates, state: ScaleByDistanceOverGradientsState, params: Params | None = None
    ) -> tuple[Updates, ScaleByDistanceOverGradientsState]:
        distance = tree.map(norms.norm, difference(caller, params, state.init_params))
        farthest = tree.map(mx.maximum, state.max_dist, distance)
        squares = tree.map(
            lambda s, g: s + sums.total(mx.square(g.astype(mx.float32))), state.grad_sum_of_squares, updates
        )
        rates = tree.map(lambda d, s: global_scale * d * mx.rsqrt(s + eps), farthest, squares)
        updates = tree.map(lambda r, g: (r * g).astype(g.dtype), rates, updates)
        return updates, ScaleByDistanceOverGradientsState(farthest, squares, state.init_params)

    return checked(caller, init, update)


def scale_by_dog(init_step: tuple[str, float], eps: float = 1e-8) -> GradientTransform:
    """Rescale gradients by the distance moved over the root of the sum of their squared norms.

    With `x` all parameters together, `x0` their first values and `g` the gradient:

        d = max(d, norm(x - x0))
        G = G + norm(g) ** 2
        update = d / sqrt(G + eps) * g

    The authors advise evaluation with an average of the parameters, such as `averaged`. `init` uses the
    values of the parameters, not only their shapes.

    Args:
        init_step: the first `d`, as a pair of a name and a number above 0. ("distance", r) sets `d = r`.
            ("heuristic", a) sets `d = a * (1 + norm(x0))`. ("learning_rate", r) multiplies the first gradient
            by r and sets `d = 0`.
        eps: added to `G`, above 0.

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
        start = value * (1 + norms.norm(params)) if kind == "heuristic" else scalars.float32(value)
        return ScaleByDoGState(
            is_init_step=mx.array(True),
            init_params=params,
            max_dist=mx.array(0.0) if kind == "learning_rate" else start,
            sum_sq_norm_grads=mx.array(0.0),
        )

    def update(
        updates: Updates, state: ScaleByDoGState, params: Params | None = None
    ) -> tuple[Updates, ScaleByDoGState]:
        farthest = mx.maximum(state.max_dist, norms.norm(difference(caller, params, state.init_params)))
        squares = state.sum_sq_norm_grads + mx.square(norms.norm(updates))
        rate = farthest * mx.rsqrt(squares + eps)
        if kind == "learning_rate":
            rate = mx.where(state.is_init_step, value, rate)
        updates = tree.map(lambda g: (rate * g).astype(g.dtype), updates)
        return updates, ScaleByDoGState(mx.array(False), state.init_params, farthest, squares)

    return checked(caller, init, update, elementwise=True)


def difference(caller: str, params: Params | None, start: Params) -> Tree:
    """Return the difference of each parameter from its first value, in float32."""
    params = required(caller, params)
    return tree.map(lambda p, p0: p.astype(mx.float32) - p0.astype(mx.float32), params, start)


def dog(
    learning_rate: ScalarOrSchedule = 1.0,
    init_step: tuple[str, float] = ("heuristic", 1e-6),
    eps: float = 1e-8,
    weight_decay: float | mx.array | None = None,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """Chain `add_decayed_weights`, `scale_by_dog` and `scale_by_learning_rate` (arXiv:2302.12022).

    Without `weight_decay`, the first is omitted. The decay is added to the gradient and counts in its norm.

    Args:
        learning_rate: a factor of the step size: a number of at least 0, a 0-d array or a schedule.
        init_step, eps: as in `scale_by_dog`; the authors advise ("heuristic", 1e-4) with batch normalization.
        weight_decay, mask: as in `add_decayed_weights`.

    >>> transform, params = dog(init_step=("distance", 0.1)), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.1, dtype=float32)}
    """
    decay = identity() if weight_decay is None else add_decayed_weights(weight_decay, mask)
    return chain(decay, scale_by_dog(init_step, eps), scale_by_learning_rate(learning_rate))
