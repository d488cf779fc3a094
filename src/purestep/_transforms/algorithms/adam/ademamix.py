"""AdEMAMix: Adam with a second, much slower mean of gradients; and its simplified form."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.core.scheduled import value_at
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


class ScaleByAdEMAMixState(NamedTuple):
    """State of `scale_by_ademamix`.

    Attributes:
        count: 0-d int32, the number of updates.
        m1, m2: like params, the fast and the slow mean of gradients; float32, or `mu_dtype` if given.
        nu: like params, float32, the running mean of squared gradients.
    """

    count: mx.array
    m1: Tree
    m2: Tree
    nu: Tree


class ScaleBySimplifiedAdEMAMixState(NamedTuple):
    """State of `scale_by_simplified_ademamix`.

    Attributes:
        t: 0-d int32, the number of updates.
        m, n: like params, float32, the decayed sum of gradients and the running mean of their squares.
    """

    t: mx.array
    m: Tree
    n: Tree


def scale_by_ademamix(
    b1: float = 0.9,
    b2: float = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 6.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
) -> GradientTransform:
    """Rescale gradients as AdEMAMix does.

    With `g` the gradient and `t` the number of this update, counted from 1:

        m1 = b1 * m1 + (1 - b1) * g
        m2 = b3 * m2 + (1 - b3) * g
        nu = b2 * nu + (1 - b2) * g ** 2
        update = (m1 / (1 - b1 ** t) + alpha * m2) / (sqrt(nu / (1 - b2 ** t) + eps_root) + eps)

    The bias of the slow mean is not corrected: the mean is meant to grow slowly from 0.

    Args:
        b1: decay of the fast mean, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        b3: decay of the slow mean, in [0, 1), or a schedule.
        alpha: weight of the slow mean, at least 0, or a schedule. The paper schedules `b3` and `alpha` to
            rise from small values.
        eps: added outside the root, at least 0.
        eps_root: added inside the root, at least 0.
        mu_dtype: the dtype in which `m1` and `m2` are stored; `None` is float32.

    Differences from optax:

    1. `m1` and `m2` are stored in `mu_dtype` after every update; `nu` is always float32.
    2. The schedules and the bias corrections use one count. optax keeps two equal counts.

    Reference: Pagliardini et al., The AdEMAMix optimizer, arXiv:2409.03137.

    >>> transform = scale_by_ademamix(b3=0.75, alpha=2.0)
    >>> updates, state = transform.update({"w": mx.array(5.0)}, transform.init({"w": mx.array(0.0)}))
    >>> round(updates["w"].item(), 5)
    1.5
    """
    caller = "scale_by_ademamix"
    b1, b2 = moments.decays(caller, b1=b1, b2=b2)
    if not callable(b3):
        (b3,) = moments.decays(caller, b3=b3)
    if not callable(alpha):
        alpha = checks.number(caller, "alpha", alpha, least=0)
    eps, eps_root = moments.epsilons(caller, eps=eps, eps_root=eps_root)

    def init(params: Params) -> ScaleByAdEMAMixState:
        m1, m2 = (moments.zeros(params, mu_dtype) for _ in range(2))
        return ScaleByAdEMAMixState(mx.array(0, mx.int32), m1, m2, moments.zeros(params))

    def update(
        updates: Updates, state: ScaleByAdEMAMixState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdEMAMixState]:
        slow = value_at(caller, "b3", b3, state.count) if callable(b3) else b3
        share = value_at(caller, "alpha", alpha, state.count) if callable(alpha) else alpha
        count = scalars.increment(state.count)
        g = moments.float32(updates)
        m1, m2 = moments.mean(g, state.m1, b1), moments.mean(g, state.m2, slow)
        nu = moments.mean_square(g, state.nu, b2)
        m1_scale, nu_scale = moments.debias(b1, count), moments.debias(b2, count)

        def divided(m1: mx.array, m2: mx.array, nu: mx.array) -> mx.array:
            return moments.rescaled(m1_scale * m1 + share * m2, nu_scale * nu, eps, eps_root)

        updates = tree.map(divided, m1, m2, nu)
        m1, m2 = moments.stored(m1, mu_dtype), moments.stored(m2, mu_dtype)
        return updates, ScaleByAdEMAMixState(count, m1, m2, nu)

    return checked(caller, init, update, elementwise=True)


def scale_by_simplified_ademamix(
    b1: float = 0.99,
    b2: float = 0.95,
    alpha: ScalarOrSchedule = 0.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
) -> GradientTransform:
    """Rescale gradients as simplified AdEMAMix does: mix one decayed sum with the gradient itself.

    With `g` the gradient and `t` the number of this update, counted from 1:

        m = b1 * m + g
        n = b2 * n + (1 - b2) * g ** 2
        update = (m + alpha * g) / (sqrt(n / (1 - b2 ** t) + eps_root) + eps)

    `m` is a sum, not a mean: choose a learning rate about `1 - b1` times that of Adam.

    Args:
        b1: decay of the sum, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        alpha: weight of the gradient, at least 0, or a schedule; with 0 this is Adam up to a factor.
        eps: added outside the root, at least 0.
        eps_root: added inside the root, at least 0.

    Reference: Morwani et al., arXiv:2502.02431.

    >>> transform = scale_by_simplified_ademamix(alpha=2.0)
    >>> updates, state = transform.update({"w": mx.array(5.0)}, transform.init({"w": mx.array(0.0)}))
    >>> round(updates["w"].item(), 5)
    3.0
    """
    caller = "scale_by_simplified_ademamix"
    b1, b2 = moments.decays(caller, b1=b1, b2=b2)
    if not callable(alpha):
        alpha = checks.number(caller, "alpha", alpha, least=0)
    eps, eps_root = moments.epsilons(caller, eps=eps, eps_root=eps_root)

    def init(params: Params) -> ScaleBySimplifiedAdEMAMixState:
        zeros = moments.zeros(params), moments.zeros(params)
        return ScaleBySimplifiedAdEMAMixState(mx.array(0, mx.int32), *zeros)

    def update(
        updates: Updates, state: ScaleBySimplifiedAdEMAMixState, params: Params | None = None
    ) -> tuple[Updates, ScaleBySimplifiedAdEMAMixState]:
        share = value_at(caller, "alpha", alpha, state.t) if callable(alpha) else alpha
        t = scalars.increment(state.t)
        g = moments.float32(updates)
        m = tree.map(lambda x, old: b1 * old + x, g, state.m)
        n = moments.mean_square(g, state.n, b2)
        n_scale = moments.debias(b2, t)

        def divided(m: mx.array, g: mx.array, n: mx.array) -> mx.array:
            return moments.rescaled(m + share * g, n_scale * n, eps, eps_root)

        return tree.map(divided, m, g, n), ScaleBySimplifiedAdEMAMixState(t, m, n)

    return checked(caller, init, update, elementwise=True)


def ademamix(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 5.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    weight_decay: float | mx.array = 0.0,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """Chain `scale_by_ademamix`, `add_decayed_weights` and `scale_by_learning_rate` (arXiv:2409.03137).

    The default of `alpha` is 5 here and 6 in `scale_by_ademamix`, as in optax.

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, b3, alpha, eps, eps_root, mu_dtype: as in `scale_by_ademamix`.
        weight_decay, mask: as in `add_decayed_weights`; the decay is decoupled.

    >>> transform, params = ademamix(0.1, b3=0.8), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.2, dtype=float32)}
    """
    return chain(
        scale_by_ademamix(b1, b2, b3, alpha, eps, eps_root, mu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def simplified_ademamix(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.99,
    b2: float = 0.95,
    alpha: ScalarOrSchedule = 0.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float | mx.array = 0.0,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """Chain `scale_by_simplified_ademamix`, `add_decayed_weights` and `scale_by_learning_rate`.

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, alpha, eps, eps_root: as in `scale_by_simplified_ademamix`.
        weight_decay, mask: as in `add_decayed_weights`; the decay is decoupled.

    Reference: Morwani et al., arXiv:2502.02431.

    >>> transform, params = simplified_ademamix(0.1, alpha=1.0), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.2, dtype=float32)}
    """
    return chain(
        scale_by_simplified_ademamix(b1, b2, alpha, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
