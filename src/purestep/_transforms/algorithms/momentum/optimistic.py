"""Optimistic gradient descent and optimistic Adam."""

from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.algorithms.adam.adam import scale_by_adam
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import scale_by_learning_rate


class ScaleByOptimisticGradientState(NamedTuple):
    """State of `scale_by_optimistic_gradient`.

    Attributes:
        is_initial_step: 0-d bool, true before the first update.
        previous_gradient: like params, float32, the gradient of the previous update.
    """

    is_initial_step: mx.array
    previous_gradient: Tree


def scale_by_optimistic_gradient(
    alpha: float | mx.array = 1.0, beta: float | mx.array = 1.0
) -> GradientTransform:
    """Extrapolate the gradient by its change: `alpha * g + beta * (g - previous)`.

    The change is 0 in the first update. The state and the updates are float32 for gradients of any dtype.

    Args:
        alpha: the factor of the gradient, finite.
        beta: the factor of its change, finite.

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
        return ScaleByOptimisticGradientState(mx.array(True), moments.zeros(params))

    def update(
        updates: Updates, state: ScaleByOptimisticGradientState, params: Params | None = None
    ) -> tuple[Updates, ScaleByOptimisticGradientState]:
        gradients = moments.float32(updates)

        def ahead(g: mx.array, previous: mx.array) -> mx.array:
            return alpha * g + beta * (g - mx.where(state.is_initial_step, g, previous))

        updates = tree.map(ahead, gradients, state.previous_gradient)
        return updates, ScaleByOptimisticGradientState(mx.array(False), gradients)

    return checked("scale_by_optimistic_gradient", init, update, elementwise=True)


def optimistic_gradient_descent(
    learning_rate: ScalarOrSchedule, alpha: float | mx.array = 1.0, beta: float | mx.array = 1.0
) -> GradientTransform:
    """Chain `scale_by_optimistic_gradient` and `scale_by_learning_rate` (arXiv:1901.08511).

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        alpha, beta: as in `scale_by_optimistic_gradient`.

    >>> transform, params = optimistic_gradient_descent(0.1), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.2, dtype=float32)}
    """
    return chain(scale_by_optimistic_gradient(alpha, beta), scale_by_learning_rate(learning_rate))


def optimistic_adam(
    learning_rate: ScalarOrSchedule,
    optimism: float | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    *,
    nesterov: bool = True,
) -> GradientTransform:
    """Chain `scale_by_adam`, `scale_by_optimistic_gradient` and `scale_by_learning_rate` (arXiv:1711.00141).

    This is `optimistic_adam_v2` with `beta = optimism / learning_rate`. If the learning rate changes, by a
    schedule or in the state, this ratio stays the same.

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule. With `optimism`, a number above 0.
        optimism: the learning rate for the change of Adam's updates, finite; `None` is the learning rate.
        b1, b2, eps, eps_root, mu_dtype, nesterov: as in `scale_by_adam`.

    >>> transform, params = optimistic_adam(1e-2), {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.014737
    """
    caller, beta = "optimistic_adam", 1.0
    if optimism is not None:
        change: float = checks.number(caller, "optimism", optimism)
        if callable(learning_rate) or isinstance(learning_rate, mx.array):
            raise checks.error(caller, "learning_rate must be a number when optimism is given")
        rate: float = checks.number(caller, "learning_rate", learning_rate, above=0)
        learning_rate, beta = rate, change / rate
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_optimistic_gradient(1.0, beta),
        scale_by_learning_rate(learning_rate),
    )


def optimistic_adam_v2(
    learning_rate: ScalarOrSchedule,
    *,
    alpha: float | mx.array = 1.0,
    beta: float | mx.array = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    nesterov: bool = True,
) -> GradientTransform:
    """Chain `scale_by_adam`, `scale_by_optimistic_gradient` and `scale_by_learning_rate` (arXiv:1711.00141).

    With `u` the update of Adam, a step is `alpha * u + beta * (u - previous u)` times the learning rate.

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        alpha, beta: factors of Adam's update and of its change since the previous step.
        b1, b2, eps, eps_root, mu_dtype, nesterov: as in `scale_by_adam`.

    >>> transform, params = optimistic_adam_v2(1e-2, nesterov=False), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.01, dtype=float32)}
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_optimistic_gradient(alpha, beta),
        scale_by_learning_rate(learning_rate),
    )
