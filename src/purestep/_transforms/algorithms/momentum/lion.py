"""Lion: the sign of a mixture of gradient and momentum."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.algorithms.momentum.sign import sign
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


class ScaleByLionState(NamedTuple):
    """State of `scale_by_lion`.

    Attributes:
        count: 0-d int32, the number of updates.
        mu: like params, the running mean of gradients; float32, or `mu_dtype` if given.
    """

    count: mx.array
    mu: Tree


def scale_by_lion(
    b1: float = 0.9,
    b2: float = 0.99,
    mu_dtype: mx.Dtype | None = None,
    *,
    mode: Literal["hard", "smooth", "refined"] = "hard",
    smooth_beta: float = 1.0,
) -> GradientTransform:
    """Replace gradients by the sign of their mixture with a running mean.

    The mixture uses `b1`; the mean itself decays with `b2`.

    With `g` the gradient:

        mixed = b1 * mu + (1 - b1) * g
        mu = b2 * mu + (1 - b2) * g
        update = sign(mixed)                        hard
                 tanh(smooth_beta * mixed)          smooth
                 clip(mixed, -1, 1)                 refined

    A NaN in the mixture is NaN in the update.

    Args:
        b1: weight of the mean in the mixture, in [0, 1).
        b2: decay of the mean, in [0, 1).
        mu_dtype: the dtype in which `mu` is stored; `None` is float32.
        mode: `"hard"`, the sign, or one of the smoother functions `"smooth"` and `"refined"`.
        smooth_beta: the factor inside the tanh of `"smooth"`, greater than 0.

    Raises:
        ValueError: for an unknown `mode`.

    Differences from optax:

    1. `mu` is float32 unless `mu_dtype` is given, and updates are float32; optax takes the dtype of the
       gradients for both.
    2. An unknown `mode` is refused at construction.

    Reference: Chen et al., Symbolic discovery of optimization algorithms, arXiv:2302.06675.

    >>> transform = scale_by_lion()
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for gradient in (5.0, -0.1):
    ...     updates, state = transform.update({"w": mx.array(gradient)}, state)
    >>> updates  # the sign of 0.9 * 0.05 - 0.1 * 0.1
    {'w': array(1, dtype=float32)}
    """
    caller = "scale_by_lion"
    b1, b2 = moments.decays(caller, b1=b1, b2=b2)
    smooth_beta = checks.number(caller, "smooth_beta", smooth_beta, above=0)
    directions = {
        "hard": sign,
        "smooth": lambda x: mx.tanh(smooth_beta * x),
        "refined": lambda x: mx.clip(x, -1.0, 1.0),
    }
    checks.one_of(caller, "mode", mode, directions)
    direction = directions[mode]

    def init(params: Params) -> ScaleByLionState:
        return ScaleByLionState(mx.array(0, mx.int32), moments.zeros(params, mu_dtype))

    def update(
        updates: Updates, state: ScaleByLionState, params: Params | None = None
    ) -> tuple[Updates, ScaleByLionState]:
        gradients = moments.float32(updates)
        updates = tree.map(direction, moments.mean(gradients, state.mu, b1))
        mu = moments.stored(moments.mean(gradients, state.mu, b2), mu_dtype)
        return updates, ScaleByLionState(scalars.increment(state.count), mu)

    return checked(caller, init, update, elementwise=True)


def lion(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.99,
    mu_dtype: mx.Dtype | None = None,
    weight_decay: float | mx.array = 1e-3,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """Chain `scale_by_lion`, `add_decayed_weights` and `scale_by_learning_rate` (arXiv:2302.06675).

    Apart from weight decay, every element changes by the learning rate, up or down, whatever the size of its
    gradient. Choose a rate 3 to 10 times smaller than for AdamW, and a decay that is larger by the same
    factor.

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, mu_dtype: as in `scale_by_lion`.
        weight_decay, mask: as in `add_decayed_weights`; the decay is decoupled.

    >>> transform, params = lion(1e-3, weight_decay=0.1), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.0011, dtype=float32)}
    """
    return chain(
        scale_by_lion(b1, b2, mu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
