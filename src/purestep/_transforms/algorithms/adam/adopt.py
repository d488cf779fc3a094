"""ADOPT: Adam that divides by the mean square of the earlier gradients, before it takes the mean."""

from collections.abc import Callable

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Updates
from purestep._transforms.algorithms.adam.adam import ScaleByAdamState, first_state
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.core.scheduled import called
from purestep._transforms.pieces.scaling import scale_by_learning_rate


def scale_by_adopt(
    b1: float = 0.9,
    b2: float = 0.9999,
    eps: float = 1e-6,
    mu_dtype: mx.Dtype | None = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[mx.array], mx.array] = lambda x: x**0.25,
) -> GradientTransform:
    """Rescale gradients as ADOPT does; the state is a `ScaleByAdamState`.

    With `g` the gradient and `n` the number of earlier updates, for `n > 0`:

        r = clip(g / max(sqrt(nu), eps), -clip_value_fn(n), clip_value_fn(n))
        mu = b1 * mu + (1 - b1) * r
        nu = b2 * nu + (1 - b2) * g ** 2
        update = mu, or b1 * mu + (1 - b1) * r with nesterov

    The first update is zero and sets `nu = g ** 2`.

    Args:
        b1: decay of the mean of rescaled gradients, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        eps: the smallest divisor, above 0.
        mu_dtype: the dtype in which `mu` is stored; `None` is float32.
        nesterov: use Nesterov momentum.
        use_clipping: clip the rescaled gradients.
        clip_value_fn: a function of `n`, 0-d float32, that returns the bound.

    Differences from optax:

    1. `nu` and the updates are float32 for gradients of any dtype.

    Reference: Taniguchi et al., ADOPT, arXiv:2411.02853.

    >>> transform = scale_by_adopt()
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for _ in range(2):
    ...     updates, state = transform.update({"w": mx.array(5.0)}, state)
    ...     print(round(updates["w"].item(), 5))
    0.0
    0.1
    """
    caller = "scale_by_adopt"
    b1, b2 = moments.decays(caller, b1=b1, b2=b2)
    eps = checks.number(caller, "eps", eps, above=0)
    checks.function(caller, "clip_value_fn", clip_value_fn)

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdamState]:
        first = state.count == 0
        kept, taken = mx.where(first, 1.0, b1), mx.where(first, 0.0, 1 - b1)
        b2_now, b2_rest = mx.where(first, 0.0, b2), mx.where(first, 1.0, 1 - b2)
        g = moments.float32(updates)
        scaled = tree.map(lambda x, v: x / mx.maximum(scalars.flat_at_zero(mx.sqrt, v), eps), g, state.nu)
        if use_clipping:
            bound = called(caller, "clip_value_fn", clip_value_fn, state.count.astype(mx.float32))
            scaled = tree.map(lambda r: mx.clip(r, -bound, bound), scaled)
        mu = tree.map(lambda m, r: kept * m.astype(mx.float32) + taken * r, state.mu, scaled)
        nu = tree.map(lambda v, x: b2_now * v + b2_rest * mx.square(x), state.nu, g)
        updates = tree.map(lambda m, r: kept * m + taken * r, mu, scaled) if nesterov else mu
        return updates, ScaleByAdamState(scalars.increment(state.count), moments.stored(mu, mu_dtype), nu)

    return checked(caller, lambda params: first_state(params, mu_dtype), update, elementwise=True)


def adopt(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.9999,
    eps: float = 1e-6,
    mu_dtype: mx.Dtype | None = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[mx.array], mx.array] = lambda x: x**0.25,
) -> GradientTransform:
    """Chain `scale_by_adopt` and `scale_by_learning_rate` (arXiv:2411.02853). The first update is zero.

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, eps, mu_dtype, nesterov, use_clipping, clip_value_fn: as in `scale_by_adopt`.

    >>> transform = adopt(0.1)
    >>> params = {"w": mx.array(1.0)}
    >>> state = transform.init(params)
    >>> for _ in range(2):
    ...     updates, state = transform.update({"w": mx.array(2.0)}, state, params)
    >>> round(updates["w"].item(), 5)
    -0.01
    """
    clipping = {"use_clipping": use_clipping, "clip_value_fn": clip_value_fn}
    return chain(
        scale_by_adopt(b1, b2, eps, mu_dtype, nesterov=nesterov, **clipping),
        scale_by_learning_rate(learning_rate),
    )
