"""Rprop: a step size for every element, adapted by the signs of its gradients."""

from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.algorithms.momentum.sign import sign
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import scale


class ScaleByRpropState(NamedTuple):
    """State of `scale_by_rprop`.

    Attributes:
        step_sizes: like params, float32, the step size of each element in the last update.
        prev_updates: like params, float32, the last updates; 0 where the sign of the gradient changed.
    """

    step_sizes: Tree
    prev_updates: Tree


def scale_by_rprop(
    learning_rate: float | mx.array,
    eta_minus: float = 0.5,
    eta_plus: float = 1.2,
    min_step_size: float = 1e-6,
    max_step_size: float = 50.0,
) -> GradientTransform:
    """Replace gradients by signed steps that grow while the sign stays the same and shrink when it changes.

    With `g` the gradient and `s = sign(g) * prev_updates`:

        step_size = clip(step_size * eta_plus, min_step_size, max_step_size)    where s > 0
                    clip(step_size * eta_minus, min_step_size, max_step_size)   where s < 0
                    step_size                                                   where s = 0
        update = 0 where s < 0, else step_size * sign(g)

    Use it with full batches: the signs of gradients of small batches are mostly noise. The updates have the
    sign of the gradients and include the step size; `scale(-1.0)` must follow.

    Args:
        learning_rate: the first step size, greater than 0; not a schedule.
        eta_minus: the factor of a step that shrinks, in (0, 1).
        eta_plus: the factor of a step that grows, greater than 1.
        min_step_size: at least 0.
        max_step_size: at least `min_step_size`.

    Differences from optax:

    1. The update is computed from the present gradient, as published and as in PyTorch. optax 0.2.8 returns
       the update of the step before, and 0 at first (its pull request 1725). The states are equal.
    2. The state and the updates are float32 for gradients of any dtype.
    3. Signs are multiplied, not gradients: products of tiny gradients would underflow.

    Reference: Riedmiller and Braun, A direct adaptive method for faster backpropagation learning, 1993;
    without its weight backtracking: Igel and Hüsken, 2003.

    >>> transform = scale_by_rprop(0.5, eta_plus=1.5)
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for gradient in (7.0, 0.1, -3.0, -3.0):
    ...     updates, state = transform.update({"w": mx.array(gradient)}, state)
    ...     print(updates["w"].item())
    0.5
    0.75
    0.0
    -0.375
    """
    caller = "scale_by_rprop"
    learning_rate = checks.number(caller, "learning_rate", learning_rate, above=0)
    eta_minus = checks.number(caller, "eta_minus", eta_minus, above=0, below=1)
    eta_plus = checks.number(caller, "eta_plus", eta_plus, above=1)
    min_step_size = checks.number(caller, "min_step_size", min_step_size, least=0)
    least = 0 if isinstance(min_step_size, mx.array) else min_step_size
    max_step_size = checks.number(caller, "max_step_size", max_step_size, least=least)

    def init(params: Params) -> ScaleByRpropState:
        return ScaleByRpropState(moments.full_like(params, learning_rate), moments.zeros(params))

    def resized(s: mx.array, size: mx.array) -> mx.array:
        changed = mx.clip(size * mx.where(s > 0, eta_plus, eta_minus), min_step_size, max_step_size)
        return mx.where(s == 0, size, changed)

    def update(
        updates: Updates, state: ScaleByRpropState, params: Params | None = None
    ) -> tuple[Updates, ScaleByRpropState]:
        signs = tree.map(sign, moments.float32(updates))
        agreement = tree.map(lambda d, p: d * p, signs, state.prev_updates)
        sizes = tree.map(resized, agreement, state.step_sizes)
        updates = tree.map(lambda s, d, size: mx.where(s < 0, 0.0, size * d), agreement, signs, sizes)
        return updates, ScaleByRpropState(sizes, updates)

    return checked(caller, init, update, elementwise=True)


def rprop(
    learning_rate: float | mx.array,
    eta_minus: float = 0.5,
    eta_plus: float = 1.2,
    min_step_size: float = 1e-6,
    max_step_size: float = 50.0,
) -> GradientTransform:
    """Chain `scale_by_rprop` and `scale(-1.0)` (Riedmiller and Braun, 1993).

    It equals PyTorch's Rprop; `scale_by_rprop` lists the differences from optax.

    Args:
        learning_rate, eta_minus, eta_plus, min_step_size, max_step_size: as in `scale_by_rprop`.

    >>> transform, params = rprop(0.01), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.01, dtype=float32)}
    """
    return chain(
        scale_by_rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size), scale(-1.0)
    )
