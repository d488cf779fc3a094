"""RAdam: Adam that waits for its mean square to mean something."""

import math

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Updates
from purestep._transforms.algorithms.adam.adam import ScaleByAdamState
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
    """Rescale gradients as Adam does, the variance of the adaptive rate rectified.

    Differences from optax:

    1. The means, and so the updates, are float32 whatever the gradients' dtype.
    2. `threshold` is at least 4: below, the rectification is the root of a negative number.
    3. `rho` is right to float32; taken literally there, its formula cancels and is off by up to 3 %.

    With `g` the gradient and `t` the number of this update, counted from 1:

        mu = b1 * mu + (1 - b1) * g
        nu = b2 * nu + (1 - b2) * g ** 2
        limit = 2 / (1 - b2) - 1
        rho = limit - 2 * t * b2 ** t / (1 - b2 ** t)
        r = sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
        update = r * (mu / (1 - b1 ** t)) / (sqrt(nu / (1 - b2 ** t) + eps_root) + eps)

    and while `rho < threshold`, update = mu / (1 - b1 ** t): the first 5 updates by default, and all of them
    for a `b2` so small that `limit` is not above the threshold. With `nesterov`, `mu / (1 - b1 ** t)` becomes
    `b1 * mu / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1 ** t)`.

    Args:
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        eps: added outside the root, at least 0.
        eps_root: added inside the root, at least 0.
        threshold: the `rho` from which on the mean square is used, at least 4.
        nesterov: look ahead by one step of momentum.

    The state is a `ScaleByAdamState`. PyTorch's RAdam adds its eps before the mean square is corrected: the
    two are equal when it is 0.

    Reference: Liu et al., On the variance of the adaptive learning rate and beyond, arXiv:1908.03265.

    >>> transform = scale_by_radam()
    >>> updates, _ = transform.update({"w": mx.array(5.0)}, transform.init({"w": mx.array(0.0)}))
    >>> round(updates["w"].item(), 6)  # the gradient itself
    5.0
    """
    caller = "scale_by_radam"
    b1 = checks.number(caller, "b1", b1, least=0, below=1)
    b2 = checks.number(caller, "b2", b2, least=0, below=1)
    eps = checks.number(caller, "eps", eps, least=0)
    eps_root = checks.number(caller, "eps_root", eps_root, least=0)
    threshold = checks.number(caller, "threshold", threshold, least=4)
    for name, value in (("b2", b2), ("threshold", threshold)):
        if isinstance(value, mx.array):  # Python chooses the formula by them, and waits for no device
            raise TypeError(
                f"{caller}: {name} must be a Python number, got an array: "
                "under inject_hyperparams name it in static_args"
            )
    limit = 2 / (1 - b2) - 1
    adapts = limit > threshold

    def init(params: Params) -> ScaleByAdamState:
        zeros = [tree.zeros_like(params, mx.float32) for _ in range(2)]
        return ScaleByAdamState(mx.array(0, mx.int32), *zeros)

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdamState]:
        gradients = moments.float32(updates)
        count = scalars.increment(state.count)
        mu = moments.mean(gradients, state.mu, b1)
        nu = moments.mean_square(gradients, state.nu, b2)
        if nesterov:
            updates = moments.looking_ahead(mu, gradients, b1, count)
        else:
            updates = moments.corrected(mu, b1, count)
        if adapts:
            rho = length(b2, count)
            ready = rho >= threshold
            r = mx.sqrt(mx.maximum((1 - 4 / rho) * (rho - 2) * (limit / ((limit - 4) * (limit - 2))), 0))

            def rectified(d: mx.array, v: mx.array) -> mx.array:
                return d * mx.where(ready, r / nonzero(d, moments.root(v, eps_root) + eps, eps), 1.0)

            updates = tree.map(rectified, updates, moments.corrected(nu, b2, count))
        return updates, ScaleByAdamState(count, mu, nu)

    return checked(caller, init, update)


def length(decay: float, count: mx.array) -> mx.array:
    """Return how many gradients a running mean over `count` of them is worth, RAdam's `rho`: 0-d float32.

    `2 / (1 - decay) - 1 - 2 * t * decay ** t / (1 - decay ** t)`. With `decay = exp(-x)` and `h = t * x` the
    last term is `(2 / x) * h / (exp(h) - 1)`. For small h, where it nearly equals the first, the series
    `h / (exp(h) - 1) = 1 - h / 2 + h ** 2 / 12 - h ** 4 / 720 + ...` takes out by hand what would cancel.

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
    """`scale_by_radam`, then `scale_by_learning_rate` (arXiv:1908.03265).

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        b1: as in `scale_by_radam`, like the arguments that follow.
        b2: decay of the mean of squares.
        eps: added outside the root.
        eps_root: added inside the root.
        threshold: from when on the mean of squares is used, at least 4.
        nesterov: look ahead by one step of momentum.

    >>> import mlx.core as mx
    >>> transform = radam(1e-3)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)  # the first updates are those of momentum
    -0.002
    """
    return chain(
        scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )
