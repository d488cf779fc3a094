"""Adan: Nesterov momentum from the differences of gradients."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.core.moments import bias_correction
from purestep._transforms.core.quotients import nonzero
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


class ScaleByAdanState(NamedTuple):
    """State of `scale_by_adan`.

    Attributes:
        m: like params, float32, the running mean of gradients.
        v: like params, float32, the running mean of differences of gradients.
        n: like params, float32, the running mean of squares.
        g: like params, float32, the last gradient.
        t: 0-d int32, updates made.
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

    With `g` the gradient, `d` what it gained on the last one (0 at first) and `t` the number of this
    update, counted from 1:

        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * d
        n = b3 * n + (1 - b3) * (g + (1 - b2) * d) ** 2
        m', v', n' = m / (1 - b1 ** t), v / (1 - b2 ** t), n / (1 - b3 ** t)
        update = (m' + (1 - b2) * v') / (sqrt(n' + eps_root) + eps)

    It differs from optax in keeping all four trees, and so the updates, in float32. A `b` here is 1 less
    the paper's beta, and the paper has `b2 * d` where this has, with optax, `(1 - b2) * d`.

    Args:
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of differences, in [0, 1).
        b3: decay of the mean of squares, in [0, 1).
        eps: added outside the root, at least 0.
        eps_root: added inside the root, at least 0.

    Reference: Xie et al., Adan, arXiv:2208.06677.

    >>> transform = scale_by_adan()
    >>> updates, state = transform.update({"w": mx.array(5.0)}, transform.init({"w": mx.array(0.0)}))
    >>> round(updates["w"].item(), 5)
    1.0
    """
    caller = "scale_by_adan"
    b1 = checks.number(caller, "b1", b1, least=0, below=1)
    b2 = checks.number(caller, "b2", b2, least=0, below=1)
    b3 = checks.number(caller, "b3", b3, least=0, below=1)
    eps = checks.number(caller, "eps", eps, least=0)
    eps_root = checks.number(caller, "eps_root", eps_root, least=0)

    def init(params: Params) -> ScaleByAdanState:
        m, v, n, g = (tree.zeros_like(params, mx.float32) for _ in range(4))
        return ScaleByAdanState(m, v, n, g, mx.array(0, mx.int32))

    def update(
        updates: Updates, state: ScaleByAdanState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAdanState]:
        g = tree.map(lambda x: x.astype(mx.float32), updates)
        gained = tree.map(lambda x, last: mx.where(state.t == 0, 0.0, x - last), g, state.g)
        m = tree.map(lambda a, x: b1 * a + (1 - b1) * x, state.m, g)
        v = tree.map(lambda a, d: b2 * a + (1 - b2) * d, state.v, gained)
        n = tree.map(lambda a, x, d: b3 * a + (1 - b3) * mx.square(x + (1 - b2) * d), state.n, g, gained)
        t = scalars.increment(state.t)
        m_scale, n_scale = 1 / bias_correction(b1, t), 1 / bias_correction(b3, t)
        v_scale = (1 - b2) / bias_correction(b2, t)

        def scaled(a: mx.array, b: mx.array, c: mx.array) -> mx.array:
            direction = m_scale * a + v_scale * b
            return direction / nonzero(direction, mx.sqrt(n_scale * c + eps_root) + eps, eps)

        updates = tree.map(scaled, m, v, n)
        return updates, ScaleByAdanState(m, v, n, g, t)

    return checked(caller, init, update)


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
    """`scale_by_adan`, `add_decayed_weights`, then `scale_by_learning_rate` (arXiv:2208.06677).

    Args:
        learning_rate: a number of at least 0, or a schedule.
        b1: as in `scale_by_adan`, like the arguments that follow.
        b2: decay of the mean of differences.
        b3: decay of the mean of squares.
        eps: added outside the root.
        eps_root: added inside the root; not 0 by default, as in optax.
        weight_decay: decoupled, at least 0.
        mask: which parameters decay, as in `add_decayed_weights`.

    >>> transform = adan(0.1)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 5)
    -0.1
    """
    return chain(
        scale_by_adan(b1, b2, b3, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
