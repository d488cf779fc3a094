"""AdEMAMix: Adam with a second, much slower mean of gradients; and its simplified form."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.core.moments import bias_correction
from purestep._transforms.core.quotients import nonzero
from purestep._transforms.core.scheduled import value_at
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


class ScaleByAdEMAMixState(NamedTuple):
    """State of `scale_by_ademamix`.

    Attributes:
        count: 0-d int32, updates made.
        m1: like params, the fast mean of gradients; float32 unless `mu_dtype` says otherwise.
        m2: like params, the slow mean of gradients; in the same dtype.
        nu: like params, float32, the running mean of squared gradients.
    """

    count: mx.array
    m1: Tree
    m2: Tree
    nu: Tree


class ScaleBySimplifiedAdEMAMixState(NamedTuple):
    """State of `scale_by_simplified_ademamix`.

    Attributes:
        t: 0-d int32, updates made.
        m: like params, float32, the decayed sum of gradients.
        n: like params, float32, the running mean of squared gradients.
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

    It differs from optax in these points:

    1. `mu_dtype` is kept at every update, and is that of the two means of gradients alone: `nu` is float32.
    2. One count serves the schedules and the corrections; optax keeps two that are always equal.

    With `g` the gradient and `t` the number of this update, counted from 1:

        m1 = b1 * m1 + (1 - b1) * g
        m2 = b3 * m2 + (1 - b3) * g
        nu = b2 * nu + (1 - b2) * g ** 2
        update = (m1 / (1 - b1 ** t) + alpha * m2) / (sqrt(nu / (1 - b2 ** t) + eps_root) + eps)

    The slow mean is not corrected for its start at zero: it is meant to fill slowly.

    Args:
        b1: decay of the fast mean, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        b3: decay of the slow mean, in [0, 1), or a schedule.
        alpha: weight of the slow mean, at least 0, or a schedule; the paper raises both from small values.
        eps: added outside the root, at least 0.
        eps_root: added inside the root, at least 0.
        mu_dtype: the dtype in which `m1` and `m2` are stored.

    Reference: Pagliardini et al., The AdEMAMix optimizer, arXiv:2409.03137.

    >>> transform = scale_by_ademamix(b3=0.75, alpha=2.0)
    >>> updates, state = transform.update({"w": mx.array(5.0)}, transform.init({"w": mx.array(0.0)}))
    >>> round(updates["w"].item(), 5)
    1.5
    """
    caller = "scale_by_ademamix"
    b1 = checks.number(caller, "b1", b1, least=0, below=1)
    b2 = checks.number(caller, "b2", b2, least=0, below=1)
    if not callable(b3):
        b3 = checks.number(caller, "b3", b3, least=0, below=1)
    if not callable(alpha):
        alpha = checks.number(caller, "alpha", alpha, least=0)
    eps = checks.number(caller, "eps", eps, least=0)
    eps_root = checks.number(caller, "eps_root", eps_root, least=0)

    def init(params: Params) -> ScaleByAdEMAMixState:
        m1, m2 = (tree.zeros_like(params, mu_dtype or mx.float32) for _ in range(2))
        return ScaleByAdEMAMixState(mx.array(0, mx.int32), m1, m2, tree.zeros_like(params, mx.float32))

    def update(
        updates: Updates, state: ScaleByAdEMAMixState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdEMAMixState]:
        slow = value_at(caller, "b3", b3, state.count) if callable(b3) else b3
        share = value_at(caller, "alpha", alpha, state.count) if callable(alpha) else alpha
        count = scalars.increment(state.count)
        g = tree.map(lambda x: x.astype(mx.float32), updates)
        m1 = tree.map(lambda m, x: b1 * m.astype(mx.float32) + (1 - b1) * x, state.m1, g)
        m2 = tree.map(lambda m, x: slow * m.astype(mx.float32) + (1 - slow) * x, state.m2, g)
        nu = tree.map(lambda v, x: b2 * v + (1 - b2) * mx.square(x), state.nu, g)
        m1_scale, nu_scale = 1 / bias_correction(b1, count), 1 / bias_correction(b2, count)

        def scaled(a: mx.array, b: mx.array, v: mx.array) -> mx.array:
            direction = m1_scale * a + share * b
            return direction / nonzero(direction, mx.sqrt(nu_scale * v + eps_root) + eps, eps)

        updates = tree.map(scaled, m1, m2, nu)
        if mu_dtype is not None:
            m1, m2 = (tree.map(lambda m: m.astype(mu_dtype), m) for m in (m1, m2))
        return updates, ScaleByAdEMAMixState(count, m1, m2, nu)

    return checked(caller, init, update)


def scale_by_simplified_ademamix(
    b1: float = 0.99,
    b2: float = 0.95,
    alpha: ScalarOrSchedule = 0.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
) -> GradientTransform:
    """Rescale gradients as the simplified AdEMAMix does: one sum, mixed with the gradient itself.

    With `g` the gradient and `t` the number of this update, counted from 1:

        m = b1 * m + g
        n = b2 * n + (1 - b2) * g ** 2
        update = (m + alpha * g) / (sqrt(n / (1 - b2 ** t) + eps_root) + eps)

    `m` is a sum, not a mean: learning rates are smaller than Adam's by about `1 - b1`.

    Args:
        b1: decay of the sum, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        alpha: weight of the gradient, at least 0, or a schedule; with 0 it is Adam up to a factor.
        eps: added outside the root, at least 0.
        eps_root: added inside the root, at least 0.

    Reference: Morwani et al., arXiv:2502.02431.

    >>> transform = scale_by_simplified_ademamix(alpha=2.0)
    >>> updates, state = transform.update({"w": mx.array(5.0)}, transform.init({"w": mx.array(0.0)}))
    >>> round(updates["w"].item(), 5)
    3.0
    """
    caller = "scale_by_simplified_ademamix"
    b1 = checks.number(caller, "b1", b1, least=0, below=1)
    b2 = checks.number(caller, "b2", b2, least=0, below=1)
    if not callable(alpha):
        alpha = checks.number(caller, "alpha", alpha, least=0)
    eps = checks.number(caller, "eps", eps, least=0)
    eps_root = checks.number(caller, "eps_root", eps_root, least=0)

    def init(params: Params) -> ScaleBySimplifiedAdEMAMixState:
        m, n = (tree.zeros_like(params, mx.float32) for _ in range(2))
        return ScaleBySimplifiedAdEMAMixState(mx.array(0, mx.int32), m, n)

    def update(
        updates: Updates, state: ScaleBySimplifiedAdEMAMixState, params: Params | None = None
    ) -> tuple[Updates, ScaleBySimplifiedAdEMAMixState]:
        share = value_at(caller, "alpha", alpha, state.t) if callable(alpha) else alpha
        t = scalars.increment(state.t)
        g = tree.map(lambda x: x.astype(mx.float32), updates)
        m = tree.map(lambda a, x: b1 * a + x, state.m, g)
        n = tree.map(lambda a, x: b2 * a + (1 - b2) * mx.square(x), state.n, g)
        n_scale = 1 / bias_correction(b2, t)

        def scaled(a: mx.array, x: mx.array, c: mx.array) -> mx.array:
            direction = a + share * x
            return direction / nonzero(direction, mx.sqrt(n_scale * c + eps_root) + eps, eps)

        updates = tree.map(scaled, m, g, n)
        return updates, ScaleBySimplifiedAdEMAMixState(t, m, n)

    return checked(caller, init, update)


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
    """`scale_by_ademamix`, `add_decayed_weights`, then `scale_by_learning_rate` (arXiv:2409.03137).

    Args:
        learning_rate: a number of at least 0, or a schedule.
        b1: as in `scale_by_ademamix`, like the arguments that follow.
        b2: decay of the mean of squares.
        b3: decay of the slow mean.
        alpha: weight of the slow mean, 5 here by default, 6 there, as in optax.
        eps: added outside the root.
        eps_root: added inside the root.
        mu_dtype: the dtype in which the means of gradients are stored.
        weight_decay: decoupled, at least 0.
        mask: which parameters decay, as in `add_decayed_weights`.

    >>> transform = ademamix(0.1, b3=0.8)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    -0.2
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
    """`scale_by_simplified_ademamix`, `add_decayed_weights`, `scale_by_learning_rate` (arXiv:2502.02431).

    Args:
        learning_rate: a number of at least 0, or a schedule.
        b1: as in `scale_by_simplified_ademamix`, like the arguments that follow.
        b2: decay of the mean of squares.
        alpha: weight of the gradient.
        eps: added outside the root.
        eps_root: added inside the root.
        weight_decay: decoupled, at least 0.
        mask: which parameters decay, as in `add_decayed_weights`.

    >>> transform = simplified_ademamix(0.1, alpha=1.0)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    -0.2
    """
    return chain(
        scale_by_simplified_ademamix(b1, b2, alpha, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
