"""NovoGrad: momentum of gradients, each of which is divided by its running norm."""

import mlx.core as mx

from purestep._core import checks, scalars, sums, tree
from purestep._core.types import Params, ScalarOrSchedule, Updates
from purestep._transforms.algorithms.adam.adam import ScaleByAdamState
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked, required
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


class ScaleByNovogradState(ScaleByAdamState):
    """State of `scale_by_novograd`. It has the fields of `ScaleByAdamState` with other meanings.

    Attributes:
        count: 0-d int32, the number of updates made.
        mu: like params, the decayed sum of normalized gradients; float32, or `mu_dtype` if given.
        nu: a 0-d float32 array for each parameter, the running mean of the squared norm of its gradient.
    """


def scale_by_novograd(
    b1: float = 0.9,
    b2: float = 0.25,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float | mx.array = 0.0,
    mu_dtype: mx.Dtype | None = None,
) -> GradientTransform:
    """Divide the gradient of each array by its running norm, add the weight decay, and apply momentum.

    With `g` the gradient of one array:

        nu = b2 * nu + (1 - b2) * sum(g ** 2)           in the first update, nu = sum(g ** 2)
        mu = b1 * mu + g / (sqrt(nu + eps_root) + eps) + weight_decay * param
        update = mu

    Args:
        b1: decay of the momentum, in [0, 1).
        b2: decay of the mean of squared norms, in [0, 1).
        eps: added outside the root, at least 0.
        eps_root: added inside the root, at least 0.
        weight_decay: at least 0; the decay is part of the momentum.
        mu_dtype: the dtype in which `mu` is stored; `None` is float32.

    Raises:
        ValueError: at update, if `weight_decay` is not 0 and params is not given.

    Differences from optax:

    1. `mu` is float32 unless `mu_dtype` is given. `nu` and the updates are float32 for gradients of any
       dtype.
    2. Without weight decay, `params` may be left out.

    Reference: Ginsburg et al., Stochastic gradient methods with layer-wise adaptive moments,
    arXiv:1905.11286.

    >>> transform = scale_by_novograd()
    >>> params = {"w": mx.array([0.0, 0.0])}
    >>> updates, state = transform.update({"w": mx.array([3.0, 4.0])}, transform.init(params))
    >>> [round(x, 6) for x in updates["w"].tolist()], state.nu["w"]
    ([0.6, 0.8], array(25, dtype=float32))
    """
    caller = "scale_by_novograd"
    b1, b2 = moments.decays(caller, b1=b1, b2=b2)
    eps, eps_root = moments.epsilons(caller, eps=eps, eps_root=eps_root)
    weight_decay = checks.number(caller, "weight_decay", weight_decay, least=0)
    decays = isinstance(weight_decay, mx.array) or weight_decay != 0
    decay = add_decayed_weights(weight_decay)

    def init(params: Params) -> ScaleByNovogradState:
        nu = tree.map(lambda p: mx.array(0.0), params)
        return ScaleByNovogradState(mx.array(0, mx.int32), moments.zeros(params, mu_dtype), nu)

    def update(
        updates: Updates, state: ScaleByNovogradState, params: Params | None = None
    ) -> tuple[Updates, ScaleByNovogradState]:
        if decays:
            params = required(caller, params)
        gradients = moments.float32(updates)
        part = mx.where(state.count == 0, 1.0, 1 - b2)  # `nu` starts at 0, so its decay has no effect
        nu = tree.map(lambda g, v: b2 * v + part * sums.total(mx.square(g)), gradients, state.nu)
        updates = tree.map(lambda g, v: moments.rescaled(g, v, eps, eps_root), gradients, nu)
        if decays:
            updates, _ = decay.update(updates, (), params)
        mu = tree.map(lambda u, m: b1 * m.astype(mx.float32) + u, updates, state.mu)
        return mu, ScaleByNovogradState(scalars.increment(state.count), moments.stored(mu, mu_dtype), nu)

    return checked(caller, init, update)


def novograd(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.25,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: float | mx.array = 0.0,
) -> GradientTransform:
    """Chain `scale_by_novograd` and `scale_by_learning_rate` (arXiv:1905.11286).

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, eps, eps_root, weight_decay: as in `scale_by_novograd`.

    >>> transform, params = novograd(1e-3, weight_decay=0.1), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.0011, dtype=float32)}
    """
    return chain(
        scale_by_novograd(b1, b2, eps, eps_root, weight_decay), scale_by_learning_rate(learning_rate)
    )
