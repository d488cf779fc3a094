"""Small variations on gradient descent: noise, Polyak's step, optimism."""

from typing import Literal

import mlx.core as mx

from purestep import checks
from purestep.optimizers.sgd import sgd
from purestep.transforms.adam import scale_by_adam
from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.misc import scale_by_optimistic_gradient, scale_by_polyak
from purestep.transforms.noise import add_noise
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.types import ScalarOrSchedule


def noisy_sgd(
    learning_rate: ScalarOrSchedule,
    eta: float | mx.array = 0.01,
    gamma: float | mx.array = 0.55,
    key: mx.array | int | None = None,
) -> GradientTransform:
    """`add_noise`, then `scale_by_learning_rate` (arXiv:1511.06807).

    Args:
        learning_rate: a number of at least 0, or a schedule.
        eta: as in `add_noise`, like the arguments that follow.
        gamma: how fast the variance falls.
        key: must be given.

    >>> transform = noisy_sgd(0.1, eta=0.0, key=0)
    >>> params = {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.2, dtype=float32)}
    """
    return chain(add_noise(eta, gamma, key), scale_by_learning_rate(learning_rate))


def polyak_sgd(
    max_learning_rate: float | mx.array = 1.0,
    scaling: ScalarOrSchedule = 1.0,
    f_min: float | mx.array = 0.0,
    eps: float | mx.array = 0.0,
    variant: Literal["sps", "sps+"] = "sps",
) -> GradientTransform:
    """`sgd` at the rate `scaling`, then `scale_by_polyak` of its updates (arXiv:2002.10542).

    `update` needs `value=loss`, which `train_step` passes.

    Args:
        max_learning_rate: as in `scale_by_polyak`.
        scaling: a number of at least 0, or a schedule; as the step divides by the squared norm of what
            it is given, it works as the inverse of a factor, and 1 is plain Polyak.
        f_min: the least value that the loss can have.
        eps: added to the squared norm.
        variant: `sps` or `sps+`.

    >>> transform = polyak_sgd()
    >>> params = {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params, value=mx.array(1.0))[0]
    {'w': array(-0.5, dtype=float32)}
    """
    return chain(sgd(scaling), scale_by_polyak(f_min, max_learning_rate, eps, variant))


def optimistic_gradient_descent(
    learning_rate: ScalarOrSchedule, alpha: float | mx.array = 1.0, beta: float | mx.array = 1.0
) -> GradientTransform:
    """`scale_by_optimistic_gradient`, then `scale_by_learning_rate` (arXiv:1901.08511).

    Args:
        learning_rate: a number of at least 0, or a schedule.
        alpha: the gradient's factor.
        beta: the factor of its change.

    >>> transform = optimistic_gradient_descent(0.1)
    >>> params = {"w": mx.array(1.0)}
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
    """`scale_by_adam`, `scale_by_optimistic_gradient`, then `scale_by_learning_rate` (arXiv:1711.00141).

    `optimistic_adam_v2` with `beta = optimism / learning_rate`: of a schedule, and of a rate changed in
    the state, optimism keeps that proportion.

    Args:
        learning_rate: a number of at least 0, or a schedule.
        optimism: the rate of the change; by default the learning rate. Wants a learning rate that is a
            number above 0.
        b1: as in `scale_by_adam`, like the arguments that follow.
        b2: decay of the mean of squares.
        eps: added outside the root.
        eps_root: added inside the root.
        mu_dtype: the dtype in which the mean of gradients is stored.
        nesterov: NAdam's look-ahead.

    >>> transform = optimistic_adam(1e-2)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.014737
    """
    beta = 1.0
    if optimism is not None:
        change: float = checks.number("optimistic_adam", "optimism", optimism)
        if callable(learning_rate) or isinstance(learning_rate, mx.array):
            raise checks.refuse("optimistic_adam", "learning_rate must be a number when optimism is given")
        rate: float = checks.number("optimistic_adam", "learning_rate", learning_rate, above=0)
        learning_rate, beta = rate, change / rate
    return optimistic_adam_v2(
        learning_rate,
        beta=beta,
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        mu_dtype=mu_dtype,
        nesterov=nesterov,
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
    """`scale_by_adam`, `scale_by_optimistic_gradient`, then `scale_by_learning_rate` (arXiv:1711.00141).

    Args:
        learning_rate: a number of at least 0, or a schedule.
        alpha: the factor of Adam's update.
        beta: the factor of its change.
        b1: as in `scale_by_adam`, like the arguments that follow.
        b2: decay of the mean of squares.
        eps: added outside the root.
        eps_root: added inside the root.
        mu_dtype: the dtype in which the mean of gradients is stored.
        nesterov: NAdam's look-ahead.

    >>> transform = optimistic_adam_v2(1e-2, nesterov=False)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.01
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_optimistic_gradient(alpha, beta),
        scale_by_learning_rate(learning_rate),
    )
