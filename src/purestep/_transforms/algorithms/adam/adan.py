"""Adan: Nesterov momentum from the differences between gradients."""

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


class ScaleByAdanState(NamedTuple):
    """State of `scale_by_adan`.

    Attributes:
        m: like params, float32, the running mean of gradients.
        v: like params, float32, the running mean of the differences between gradients.
        n: like params, float32, the running mean of squares.
        g: like params, float32, the previous gradient.
        t: 0-d int32, the number of updates.
    """

    m: Tree
    v: Tree
    n: Tree
    g: Tree
    t: mx.array


def scale_by_adan(
    b1: float = 0.98, b2: float = 0.92, b3: float = 0.99, eps: float = 1e-8, eps_root: float = 0.0
) -> GradientTransform:
    """Rescale gradients as Adan does.

    With `g` the gradient, `d` its difference from the previous gradient (0 in the first update) and `t` the
    number of this update, counted from 1:

        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * d
        n = b3 * n + (1 - b3) * (g + (1 - b2) * d) ** 2
        m', v', n' = m / (1 - b1 ** t), v / (1 - b2 ** t), n / (1 - b3 ** t)
        update = (m' + (1 - b2) * v') / (sqrt(n' + eps_root) + eps)

    Each `b` is 1 minus the beta of the paper. The paper uses `b2 * d` where this function, like optax, uses
    `(1 - b2) * d`.

    Args:
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of differences, in [0, 1).
        b3: decay of the mean of squares, in [0, 1).
        eps: added outside the root, at least 0.
        eps_root: added inside the root, at least 0.

    Differences from optax:

    1. The state and the updates are float32 for gradients of any dtype.

    Reference: Xie et al., Adan, arXiv:2208.06677.

    >>> transform = scale_by_adan()
    >>> updates, state = transform.update({"w": mx.array(5.0)}, transform.init({"w": mx.array(0.0)}))
    >>> round(updates["w"].item(), 5)
    1.0
    """
    b1, b2, b3 = moments.decays("scale_by_adan", b1=b1, b2=b2, b3=b3)
    eps, eps_root = moments.epsilons("scale_by_adan", eps=eps, eps_root=eps_root)

    def init(params: Params) -> ScaleByAdanState:
        m, v, n, g = (moments.zeros(params) for _ in range(4))
        return ScaleByAdanState(m, v, n, g, mx.array(0, mx.int32))

    def update(
        updates: Updates, state: ScaleByAdanState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdanState]:
        g = moments.float32(updates)
        t = scalars.increment(state.t)
        difference = tree.map(lambda x, last: mx.where(state.t == 0, 0.0, x - last), g, state.g)
        m = moments.mean(g, state.m, b1)
        v = moments.mean(difference, state.v, b2)
        n = moments.mean_square(tree.map(lambda x, d: x + (1 - b2) * d, g, difference), state.n, b3)
        m_scale, n_scale = moments.debias(b1, t), moments.debias(b3, t)
        v_scale = (1 - b2) / moments.bias_correction(b2, t)

        def divided(m: mx.array, v: mx.array, n: mx.array) -> mx.array:
            return moments.rescaled(m_scale * m + v_scale * v, n_scale * n, eps, eps_root)

        return tree.map(divided, m, v, n), ScaleByAdanState(m, v, n, g, t)

    return checked("scale_by_adan", init, update, elementwise=True)


def adan(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.98,
    b2: float = 0.92,
    b3: float = 0.99,
    eps: float = 1e-8,
    eps_root: float = 1e-8,
    weight_decay: float | mx.array = 0.0,
    mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """Chain `scale_by_adan`, `add_decayed_weights` and `scale_by_learning_rate` (arXiv:2208.06677).

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, b3, eps, eps_root: as in `scale_by_adan`, where the default of `eps_root` is 0, as in optax.
        weight_decay, mask: as in `add_decayed_weights`; the decay is decoupled.

    >>> transform, params = adan(0.1), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.1, dtype=float32)}
    """
    return chain(
        scale_by_adan(b1, b2, b3, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
