"""AMSGrad: Adam whose mean square never shrinks."""

from typing import NamedTuple

import mlx.core as mx

from purestep._core import tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import scale_by_learning_rate


class ScaleByAmsgradState(NamedTuple):
    """State of `scale_by_amsgrad`.

    Attributes:
        count, mu, nu: as in `ScaleByAdamState`.
        nu_max: like params, float32, the largest mean square so far, by which updates are divided.
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
    """Rescale gradients as Adam does, but with the largest mean square so far.

    With `g` the gradient and `t` the number of this update, counted from 1:

        mu = b1 * mu + (1 - b1) * g
        nu = b2 * nu + (1 - b2) * g ** 2
        nu_max = max(nu_max, nu / (1 - b2 ** t))
        update = (mu / (1 - b1 ** t)) / (sqrt(nu_max + eps_root) + eps)

    Without its bias correction, a mean is not divided.

    Args:
        b1, b2, eps, eps_root, mu_dtype: as in `scale_by_adam`.
        bias_correction_mu: correct the bias of `mu`.
        bias_correction_nu: correct the bias of `nu`, before the maximum.

    Differences from optax:

    1. `mu` is float32 unless `mu_dtype` is given. The other arrays of the state, and the updates, are
       float32.

    Differences from torch:

    1. PyTorch's Adam with `amsgrad=True` takes the largest `nu` first and corrects its bias afterwards, so
       the first updates differ.

    Reference: Reddi et al., On the convergence of Adam and beyond, arXiv:1904.09237.

    >>> transform = scale_by_amsgrad(b1=0.0, b2=0.0)
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for gradient in (4.0, 1.0):
    ...     updates, state = transform.update({"w": mx.array(gradient)}, state)
    >>> updates  # 1 / 4, the largest so far
    {'w': array(0.25, dtype=float32)}
    """
    b1, b2 = moments.decays("scale_by_amsgrad", b1=b1, b2=b2)
    eps, eps_root = moments.epsilons("scale_by_amsgrad", eps=eps, eps_root=eps_root)

    def init(params: Params) -> ScaleByAmsgradState:
        nu, nu_max = moments.zeros(params), moments.zeros(params)
        return ScaleByAmsgradState(mx.array(0, mx.int32), moments.zeros(params, mu_dtype), nu, nu_max)

    def update(
        updates: Updates, state: ScaleByAmsgradState, params: Params | None = None
    ) -> tuple[Updates, ScaleByAmsgradState]:
        gradients, count, mu = moments.advance(updates, state.count, state.mu, b1)
        nu = moments.mean_square(gradients, state.nu, b2)
        direction = moments.corrected(mu, b1, count) if bias_correction_mu else mu
        square = moments.corrected(nu, b2, count) if bias_correction_nu else nu
        nu_max = tree.map(mx.maximum, state.nu_max, square)
        updates = tree.map(lambda d, v: moments.rescaled(d, v, eps, eps_root), direction, nu_max)
        return updates, ScaleByAmsgradState(count, moments.stored(mu, mu_dtype), nu, nu_max)

    return checked("scale_by_amsgrad", init, update, elementwise=True)


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
    """Chain `scale_by_amsgrad` and `scale_by_learning_rate` (arXiv:1904.09237).

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu: as in `scale_by_amsgrad`.

    >>> transform, params = amsgrad(1e-3), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-0.001, dtype=float32)}
    """
    return chain(
        scale_by_amsgrad(b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu),
        scale_by_learning_rate(learning_rate),
    )
