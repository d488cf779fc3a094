"""Muon."""

from collections.abc import Callable

import mlx.core as mx

from purestep.optimizers.adam import adamw
from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.muon import matrices_and_rest, scale_by_muon, scale_by_shape
from purestep.transforms.orthogonal import STANDARD, Coefficients, Matrices
from purestep.transforms.scaling import scale_by_learning_rate
from purestep.transforms.weight_decay import add_decayed_weights
from purestep.types import Params, ScalarOrSchedule, Tree


def muon(
    learning_rate: ScalarOrSchedule,
    ns_coeffs: Coefficients = STANDARD,
    ns_steps: int = 5,
    beta: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float | mx.array = 0.0,
    weight_decay_mask: Tree | Callable[[Params], Tree] | None = None,
    mu_dtype: mx.Dtype | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    adam_eps_root: float = 0.0,
    adam_weight_decay: float | mx.array = 0.0,
    adam_learning_rate: ScalarOrSchedule | None = None,
    matrices: Matrices = None,
    consistent_rms: float | None = None,
    ns_dtype: mx.Dtype = mx.float32,
) -> GradientTransform:
    """Train matrices by Muon and every other parameter by AdamW.

    Matrices: `scale_by_muon`, `scale_by_shape`, `add_decayed_weights`, `scale_by_learning_rate`; the decay
    is decoupled. The rest: `adamw`. Both are wrapped in `matrices_and_rest`.

    It differs from optax as `scale_by_muon` says: weights are [out, in], and `matrices`, a function of
    (path, leaf) or a mask, stands for `muon_weight_dimension_numbers`. Embeddings and output heads are
    matrices by their shape, and usually better off with AdamW:
    `matrices=lambda path, leaf: leaf.ndim == 2 and "embed" not in path`.

    Args:
        learning_rate: a number of at least 0, or a schedule.
        ns_coeffs: as in `orthogonalize`, like `ns_steps`.
        ns_steps: iterations.
        beta: decay of the mean of gradients, in [0, 1).
        eps: added to the norm of a matrix, and to AdamW's denominator.
        weight_decay: of the matrices, at least 0.
        weight_decay_mask: which matrices decay, as in `add_decayed_weights`.
        mu_dtype: the dtype in which means of gradients are stored, AdamW's too.
        nesterov: look ahead by one step of momentum, in AdamW too.
        adaptive: as in `scale_by_muon`.
        preconditioning: as in `orthogonalize`.
        adam_b1: AdamW's `b1`.
        adam_b2: AdamW's `b2`.
        adam_eps_root: AdamW's `eps_root`.
        adam_weight_decay: AdamW's decay, of all that are not matrices.
        adam_learning_rate: AdamW's rate; `None` is that of the matrices.
        matrices: as in `scale_by_muon`; `None` selects the parameters of exactly 2 axes.
        consistent_rms: as in `scale_by_shape`.
        ns_dtype: the dtype of the iteration, mx.float32 or mx.bfloat16.

    Reference: Jordan et al., Muon, 2024, kellerjordan.github.io/posts/muon; arXiv:2502.16982.

    >>> params = {"weight": mx.zeros((1, 1)), "bias": mx.zeros(1)}
    >>> transform = muon(0.1, adam_learning_rate=0.5, nesterov=False)
    >>> gradients = {"weight": mx.array([[3.0]]), "bias": mx.array([3.0])}
    >>> updates, _ = transform.update(gradients, transform.init(params), params)
    >>> round(updates["weight"].item(), 1), round(updates["bias"].item(), 1)
    (-0.1, -0.5)
    """
    direction = scale_by_muon(
        ns_coeffs,
        ns_steps,
        beta,
        eps,
        mu_dtype,
        nesterov=nesterov,
        adaptive=adaptive,
        preconditioning=preconditioning,
        matrices=matrices,
        ns_dtype=ns_dtype,
    )
    decay = add_decayed_weights(weight_decay, weight_decay_mask)
    on_matrices = chain(
        direction, scale_by_shape(matrices, consistent_rms), decay, scale_by_learning_rate(learning_rate)
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    on_rest = adamw(
        rate, adam_b1, adam_b2, eps, adam_eps_root, mu_dtype, adam_weight_decay, nesterov=nesterov
    )
    return matrices_and_rest(on_matrices, on_rest, matrices)
