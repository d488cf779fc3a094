"""AMSGrad."""

import mlx.core as mx

from purestep.transforms.amsgrad import scale_by_amsgrad
from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.types import ScalarOrSchedule


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
