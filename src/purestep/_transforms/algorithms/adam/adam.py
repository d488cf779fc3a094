"""Adam: gradients divided by the root of their running mean square."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from purestep._core import scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


class ScaleByAdamState(NamedTuple):
    """State of `scale_by_adam`.

    Attributes:
        count: 0-d int32, the number of updates.
        mu: like params, the running mean of gradients; float32, or `mu_dtype` if given.
        nu: like params, float32, the running mean of squared gradients.
    """

    count: mx.array
    mu: Tree
    nu: Tree


def first_state(params: Params, mu_dtype: mx.Dtype | None = None) -> ScaleByAdamState:
    """Return the state before the first update, for Adam and for transforms with the same state."""
    return ScaleByAdamState(mx.array(0, mx.int32), moments.zeros(params, mu_dtype), moments.zeros(params))


def scale_by_adam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransform:
    """Rescale gradients as Adam does, with both running means corrected for their bias.

    With `g` the gradient and `t` the number of this update, counted from 1:

        mu = b1 * mu + (1 - b1) * g
        nu = b2 * nu + (1 - b2) * g ** 2
        update = (mu / (1 - b1 ** t)) / (sqrt(nu / (1 - b2 ** t) + eps_root) + eps)

    With `nesterov`, the numerator is `b1 * mu / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1 ** t)`.

    The running means and the updates are float32 for parameters of any dtype. Updates are rounded to the
    parameters' dtype once, in `apply_updates`.

    Args:
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        eps: added outside the root, at least 0.
        eps_root: added inside the root, at least 0; above 0 it keeps the update differentiable at 0.
        mu_dtype: the dtype in which `mu` is stored; `None` is float32.
        nesterov: use Nesterov momentum (NAdam).

    Differences from optax:

    1. With an `eps` of 0, the update is 0, not NaN, for an element whose gradients have all been 0.

    Reference: Kingma and Ba, arXiv:1412.6980; Dozat, Incorporating Nesterov momentum into Adam, 2016.

    >>> transform = scale_by_adam()
    >>> updates, state = transform.update({"w": mx.array(5.0)}, transform.init({"w": mx.array(0.0)}))
    >>> round(updates["w"].item(), 6)
    1.0
    """
    b1, b2 = moments.decays("scale_by_adam", b1=b1, b2=b2)
    eps, eps_root = moments.epsilons("scale_by_adam", eps=eps, eps_root=eps_root)

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdamState]:
        gradients, count, mu = moments.advance(updates, state.count, state.mu, b1)
        nu = moments.mean_square(gradients, state.nu, b2)
        nu_scale = moments.debias(b2, count)
        shrink = mx.rsqrt(nu_scale)
        mu_scale = moments.debias(b1, count) * shrink
        rescale = moments.rescaling(nu_scale, eps, eps_root)
        if nesterov:
            next_scale = moments.debias(b1, scalars.increment(count)) * shrink
            direction = tree.map(lambda m, g: b1 * next_scale * m + (1 - b1) * mu_scale * g, mu, gradients)
            updates = tree.map(rescale, direction, nu)
        else:
            updates = tree.map(lambda m, v: rescale(scalars.beside(mu_scale, m) * m, v), mu, nu)
        return updates, ScaleByAdamState(count, moments.stored(mu, mu_dtype), nu)

    return checked("scale_by_adam", lambda params: first_state(params, mu_dtype), update, elementwise=True)


def adam(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransform:
    """Chain `scale_by_adam` and `scale_by_learning_rate` (arXiv:1412.6980).

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, eps, eps_root, mu_dtype, nesterov: as in `scale_by_adam`.

    >>> transform, params = adam(1e-3), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.001, dtype=float32)}
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    weight_decay: float | mx.array = 1e-4,
    mask: Tree | Callable[[Params], Tree] | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransform:
    """Chain `scale_by_adam`, `add_decayed_weights` and `scale_by_learning_rate` (arXiv:1711.05101).

    The decay is decoupled: each step subtracts `learning_rate * weight_decay * param`.

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, eps, eps_root, mu_dtype, nesterov: as in `scale_by_adam`.
        weight_decay, mask: as in `add_decayed_weights`. With `mask=transforms.matrices`, vectors do not
            decay.

    >>> transform, params = adamw(1e-3, weight_decay=0.1), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(0.0)}, transform.init(params), params)[0]
    {'w': array(-0.0001, dtype=float32)}
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def nadam(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    *,
    nesterov: bool = True,
) -> GradientTransform:
    """Chain `scale_by_adam`, with `nesterov=True`, and `scale_by_learning_rate` (Dozat, 2016).

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, eps, eps_root, mu_dtype, nesterov: as in `scale_by_adam`.

    Differences from torch:

    1. The momentum is `b1` at every step. In PyTorch it rises to `b1`. With a very large `momentum_decay` it
       is `b1` from the start, and the results are equal.

    >>> transform, params = nadam(1e-3), {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)  # the rate, times 0.9 * 0.1 / 0.19 + 0.1 / 0.1
    -0.001474
    """
    return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)


def nadamw(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    weight_decay: float | mx.array = 1e-4,
    mask: Tree | Callable[[Params], Tree] | None = None,
    *,
    nesterov: bool = True,
) -> GradientTransform:
    """Chain `scale_by_adam`, with `nesterov=True`, `add_decayed_weights` and `scale_by_learning_rate`.

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, eps, eps_root, mu_dtype, nesterov: as in `scale_by_adam`.
        weight_decay, mask: as in `add_decayed_weights`; the decay is decoupled.

    Reference: Dozat, 2016; Loshchilov and Hutter, arXiv:1711.05101.

    >>> transform, params = nadamw(1e-3, weight_decay=0.1), {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.001574
    """
    return adamw(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=nesterov)
