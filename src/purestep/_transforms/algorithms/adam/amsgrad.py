"""AMSGrad: Adam whose mean square never shrinks."""

from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.core.quotients import nonzero
from purestep._transforms.pieces.scaling import scale_by_learning_rate


class ScaleByAmsgradState(NamedTuple):
    """State of `scale_by_amsgrad`.

    Attributes:
        count: 0-d int32, updates made.
        mu: like params, the running mean of gradients; float32 unless `mu_dtype` says otherwise.
        nu: like params, float32, the running mean of squared gradients.
        nu_max: like params, float32, the largest mean square so far, as the updates use it.
    """

    count: mx.array
    mu: Tree
    nu: Tree
    nu_max: Tree


def scale_by_amsgrad(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> GradientTransform:
    """Rescale gradients as Adam does, by the largest mean square so far.

    Differences from optax:

    1. The state, unless `mu_dtype` says otherwise, and the updates are float32 whatever the gradients' dtype.

    With `g` the gradient and `t` the number of this update, counted from 1:

        mu = b1 * mu + (1 - b1) * g
        nu = b2 * nu + (1 - b2) * g ** 2
        nu_max = max(nu_max, nu / (1 - b2 ** t))
        update = (mu / (1 - b1 ** t)) / (sqrt(nu_max + eps_root) + eps)

    Without a bias correction its divisor is 1. Where PyTorch's Adam has `amsgrad=True` it takes the largest
    `nu` before the correction and corrects that: the first updates differ.

    Args:
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        eps: added outside the root, at least 0.
        eps_root: added inside the root, at least 0.
        mu_dtype: the dtype in which `mu` is stored.
        bias_correction_mu: correct `mu` for its start at zero.
        bias_correction_nu: correct `nu` for its start at zero, before the maximum.

    Reference: Reddi et al., On the convergence of Adam and beyond, arXiv:1904.09237.

    >>> transform = scale_by_amsgrad(b1=0.0, b2=0.0)
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for gradient in (4.0, 1.0):
    ...     updates, state = transform.update({"w": mx.array(gradient)}, state)
    >>> updates  # 1 over the largest so far
    {'w': array(0.25, dtype=float32)}
    """
    caller = "scale_by_amsgrad"
    b1 = checks.number(caller, "b1", b1, least=0, below=1)
    b2 = checks.number(caller, "b2", b2, least=0, below=1)
    eps = checks.number(caller, "eps", eps, least=0)
    eps_root = checks.number(caller, "eps_root", eps_root, least=0)

    def init(params: Params) -> ScaleByAmsgradState:
        return ScaleByAmsgradState(
            count=mx.array(0, mx.int32),
            mu=tree.zeros_like(params, mu_dtype or mx.float32),
            nu=tree.zeros_like(params, mx.float32),
            nu_max=tree.zeros_like(params, mx.float32),
        )

    def update(
        updates: Updates, state: ScaleByAmsgradState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAmsgradState]:
        gradients = moments.float32(updates)
        count = scalars.increment(state.count)
        mu = moments.mean(gradients, state.mu, b1)
        nu = moments.mean_square(gradients, state.nu, b2)
        direction = moments.corrected(mu, b1, count) if bias_correction_mu else mu
        square = moments.corrected(nu, b2, count) if bias_correction_nu else nu
        nu_max = tree.map(mx.maximum, state.nu_max, square)
        updates = tree.map(
            lambda d, v: d / nonzero(d, moments.root(v, eps_root) + eps, eps), direction, nu_max
        )
        return updates, ScaleByAmsgradState(count, moments.stored(mu, mu_dtype), nu, nu_max)

    return checked(caller, init, update)


def amsgrad(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: mx.Dtype | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> GradientTransform:
    """`scale_by_amsgrad`, then `scale_by_learning_rate` (arXiv:1904.09237).

    Args:
        learning_rate: a number of at least 0, a 0-d array, or a schedule.
        b1: as in `scale_by_amsgrad`, like the arguments that follow.
        b2: decay of the mean of squares.
        eps: added outside the root.
        eps_root: added inside the root.
        mu_dtype: the dtype in which the mean of gradients is stored.
        bias_correction_mu: correct the mean of gradients.
        bias_correction_nu: correct the mean of squares.

    >>> transform = amsgrad(1e-3)
    >>> params = {"w": mx.array(1.0)}
    >>> updates, _ = transform.update({"w": mx.array(2.0)}, transform.init(params), params)
    >>> round(updates["w"].item(), 6)
    -0.001
    """
    return chain(
        scale_by_amsgrad(b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu),
        scale_by_learning_rate(learning_rate),
    )
