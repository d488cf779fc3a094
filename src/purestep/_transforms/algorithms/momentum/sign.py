"""Sign descent: updates that depend on the sign of gradients only."""

import mlx.core as mx

from purestep._core import tree
from purestep._core.types import ScalarOrSchedule
from purestep._transforms.core.base import GradientTransform, without_state
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.momentum import trace
from purestep._transforms.pieces.scaling import scale_by_learning_rate


def scale_by_sign() -> GradientTransform:
    """Replace every element by its sign, -1, 0 or 1, in the gradient's dtype; NaN stays NaN.

    Reference: Bernstein et al., signSGD, arXiv:1802.04434.

    >>> scale_by_sign().update({"w": mx.array([3.0, 0.0, -0.1])}, ())
    ({'w': array([1, 0, -1], dtype=float32)}, ())
    """
    return without_state("scale_by_sign", lambda updates, params: tree.map(sign, updates), elementwise=True)


def sign(x: mx.array) -> mx.array:
    """Return the sign. The sign of NaN is NaN, so that the fault is visible; `mx.sign` returns 0.

    >>> sign(mx.array([-2.0, float("nan")]))
    array([-1, nan], dtype=float32)
    """
    return mx.where(mx.isnan(x), x, mx.sign(x))


def sign_sgd(learning_rate: ScalarOrSchedule) -> GradientTransform:
    """Chain `scale_by_sign` and `scale_by_learning_rate` (arXiv:1802.04434).

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.

    >>> transform, params = sign_sgd(0.1), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(-7.0)}, transform.init(params), params)[0]
    {'w': array(0.1, dtype=float32)}
    """
    return chain(scale_by_sign(), scale_by_learning_rate(learning_rate))


def signum(
    learning_rate: ScalarOrSchedule, beta: float = 0.9, accumulator_dtype: mx.Dtype | None = None
) -> GradientTransform:
    """Chain `trace`, `scale_by_sign` and `scale_by_learning_rate` (arXiv:1802.04434, algorithm 2).

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        beta: the decay of `trace`, in [0, 1].
        accumulator_dtype: as in `trace`.

    Differences from optax:

    1. The state is the decayed sum of gradients. optax stores their running mean, which is `1 - beta` times
       the sum and has the same sign.

    >>> transform = signum(0.1)
    >>> params = {"w": mx.array(1.0)}
    >>> state = transform.init(params)
    >>> for gradient in (2.0, -1.0):
    ...     updates, state = transform.update({"w": mx.array(gradient)}, state, params)
    >>> updates  # minus the sign of 0.9 * 2 - 1
    {'w': array(-0.1, dtype=float32)}
    """
    return chain(
        trace(beta, accumulator_dtype=accumulator_dtype),
        scale_by_sign(),
        scale_by_learning_rate(learning_rate),
    )
