"""RAdam: Adam that uses its mean square only after enough updates."""

import math

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, ScalarOrSchedule, Updates
from purestep._transforms.algorithms.adam.adam import ScaleByAdamState, first_state
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.core.quotients import nonzero
from purestep._transforms.pieces.scaling import scale_by_learning_rate


def scale_by_radam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    threshold: float = 5.0,
    *,
    nesterov: bool = False,
) -> GradientTransform:
    """Rescale gradients as Adam does, and rectify the variance of the adaptive learning rate.

    With `g` the gradient and `t` the number of this update, counted from 1:

        mu = b1 * mu + (1 - b1) * g
        nu = b2 * nu + (1 - b2) * g ** 2
        limit = 2 / (1 - b2) - 1
        rho = limit - 2 * t * b2 ** t / (1 - b2 ** t)
        r = sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
        update = r * (mu / (1 - b1 ** t)) / (sqrt(nu / (1 - b2 ** t) + eps_root) + eps)

    While `rho < threshold`, `update = mu / (1 - b1 ** t)`. With the defaults these are the first 5 updates.
    If `limit` is at most `threshold`, because `b2` is small, these are all updates.

    With `nesterov`, `mu / (1 - b1 ** t)` becomes
    `b1 * mu / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1 ** t)`. The state is a `ScaleByAdamState`.

    Args:
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of squares, in [0, 1); a Python number.
        eps: added outside the root, at least 0.
        eps_root: added inside the root, at least 0.
        threshold: the mean square is used once `rho` reaches this value; at least 4, a Python number.
        nesterov: use Nesterov momentum.

    Raises:
        TypeError: if `b2` or `threshold` is an array.

    Differences from optax:

    1. The state and the updates are float32 for gradients of any dtype.
    2. `threshold` must be at least 4. Below 4, `r` is the root of a negative number.
    3. `rho` is computed without cancellation. In float32, the formula above is wrong by up to 3 %.

    Differences from torch:

    1. PyTorch adds `eps` before the bias of the mean square is corrected. With an `eps` of 0 the results are
       equal.

    Reference: Liu et al., On the variance of the adaptive learning rate and beyond, arXiv:1908.03265.

    >>> transform = scale_by_radam()
    >>> updates, _ = transform.update({"w": mx.array(5.0)}, transform.init({"w": mx.array(0.0)}))
    >>> round(updates["w"].item(), 6)  # the gradient itself
    5.0
    """
    caller = "scale_by_radam"
    b1, b2 = moments.decays(caller, b1=b1, b2=b2)
    eps, eps_root = moments.epsilons(caller, eps=eps, eps_root=eps_root)
    threshold = checks.number(caller, "threshold", threshold, least=4)
    for name, value in (("b2", b2), ("threshold", threshold)):
        if isinstance(value, mx.array):  # it decides in Python which formula is traced
            raise TypeError(
                f"{caller}: {name} must be a Python number, got an array: "
                "under inject_hyperparams name it in static_args"
            )
    limit = 2 / (1 - b2) - 1
    adapts = limit > threshold

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdamState]:
        gradients, count, mu = moments.advance(updates, state.count, state.mu, b1)
        nu = moments.mean_square(gradients, state.nu, b2)
        updates = moments.direction(mu, gradients, b1, count, nesterov=nesterov)
        if adapts:
            rho = length(b2, count)
            ready = rho >= threshold
            r = mx.sqrt(mx.maximum((1 - 4 / rho) * (rho - 2) * (limit / ((limit - 4) * (limit - 2))), 0))

            def rectified(d: mx.array, v: mx.array) -> mx.array:
                return d * mx.where(ready, r / nonzero(d, moments.root(v, eps_root) + eps, eps), 1.0)

            updates = tree.map(rectified, updates, moments.corrected(nu, b2, count))
        return updates, ScaleByAdamState(count, mu, nu)

    return checked(caller, first_state, update, elementwise=True)


def length(decay: float, count: mx.array) -> mx.array:
    """Return the effective number of gradients in a running mean over `count` of them, 0-d float32.

    This is RAdam's `rho`, `2 / (1 - decay) - 1 - 2 * t * decay ** t / (1 - decay ** t)`. With
    `decay = exp(-x)` and `h = t * x`, the last term is `(2 / x) * h / (exp(h) - 1)`. For small `h` it nearly
    equals the first term. The series `h / (exp(h) - 1) = 1 - h / 2 + h ** 2 / 12 - h ** 4 / 720 + ...` then
    removes the part that would cancel.

    >>> round(length(0.999, mx.array(6)).item(), 4)
    5.9942
    """
    limit = 2 / (1 - decay) - 1
    if not decay:
        return mx.array(limit)
    x = -math.log(decay)
    t = count.astype(mx.float32)
    h = t * x
    square = mx.minimum(h, 1.0) * mx.minimum(h, 1.0)
    series = square * (1 / 12 - square * (1 / 720 - square * (1 / 30240 - square / 1209600)))
    small = (limit - 2 / x) + t - (2 / x) * series
    return mx.where(h < 1, small, limit - 2 * t / mx.expm1(mx.maximum(h, 1.0)))


def radam(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    threshold: float = 5.0,
    *,
    nesterov: bool = False,
) -> GradientTransform:
    """Chain `scale_by_radam` and `scale_by_learning_rate` (arXiv:1908.03265).

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, eps, eps_root, threshold, nesterov: as in `scale_by_radam`.

    >>> transform, params = radam(1e-3), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.002, dtype=float32)}
    """
    return chain(
        scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )
