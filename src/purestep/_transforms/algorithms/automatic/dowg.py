"""DoWG: step sizes from the distance moved and the norms of gradients, weighted by that distance."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, norms, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.algorithms.automatic.dog import difference
from purestep._transforms.core.base import GradientTransform, checked, identity
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


class ScaleByDoWGState(NamedTuple):
    """State of `scale_by_dowg`.

    Attributes:
        init_params: the parameters given to `init`, in their dtypes.
        weighted_sq_norm_grads: 0-d float32, the sum over updates of the squared norm of the gradient times
            `estim_sq_dist` at that update.
        estim_sq_dist: 0-d float32, the largest squared distance of the parameters from the first ones.
    """

    init_params: Tree
    weighted_sq_norm_grads: mx.array
    estim_sq_dist: mx.array


def scale_by_dowg(init_estim_sq_dist: float | None = None, eps: float = 1e-4) -> GradientTransform:
    """Rescale gradients by the squared distance moved over the root of their weighted squared norms.

    With `x` all parameters together, `x0` their first values and `g` the gradient:

        D = max(D, norm(x - x0) ** 2)
        G = G + D * norm(g) ** 2
        update = D / (sqrt(G) + eps) * g

    Args:
        init_estim_sq_dist: the first `D`, above 0; `None` is `eps`.
        eps: added to the denominator, above 0.

    Raises:
        ValueError: at update, if params is not given.

    Differences from optax:

    1. The scalars are float32 for parameters of any dtype.

    Reference: Khaled et al., DoWG unleashed, arXiv:2305.16284.

    >>> transform, params = scale_by_dowg(0.04, eps=1e-8), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(5.0)}, transform.init(params), params)[0]
    {'w': array(0.2, dtype=float32)}
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
        distance = mx.square(norms.norm(difference(caller, params, state.init_params)))
        farthest = mx.maximum(state.estim_sq_dist, distance)
        squares = state.weighted_sq_norm_grads + farthest * mx.square(norms.norm(updates))
        rate = farthest / (scalars.flat_at_zero(mx.sqrt, squares) + eps)
        updates = tree.map(lambda g: (rate * g).astype(g.dtype), updates)
        return updates, ScaleByDoWGState(state.init_params, squares, farthest)

    return checked(caller, init, update, elementwise=True)


def dowg(
    learning_rate: ScalarOrSchedule = 1.0,
    init_estim_sq_dist: float | None = None,
    eps: float = 1e-4,
    weight_decay: float | mx.array | None = None,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """Chain `add_decayed_weights`, `scale_by_dowg` and `scale_by_learning_rate` (arXiv:2305.16284).

    Without `weight_decay`, the first is omitted.

    Args:
        learning_rate, weight_decay, mask: as in `dog`.
        init_estim_sq_dist, eps: as in `scale_by_dowg`.

    >>> transform, params = dowg(init_estim_sq_dist=0.04, eps=1e-8), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.2, dtype=float32)}
    """
    decay = identity() if weight_decay is None else add_decayed_weights(weight_decay, mask)
    return chain(decay, scale_by_dowg(init_estim_sq_dist, eps), scale_by_learning_rate(learning_rate))
