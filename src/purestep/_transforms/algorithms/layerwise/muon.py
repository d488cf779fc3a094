"""Muon: momentum with each matrix replaced by a nearby orthogonal one."""

import math
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, sums, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.algorithms.adam.adam import adamw
from purestep._transforms.algorithms.layerwise.orthogonal import (
    STANDARD,
    Coefficients,
    Matrices,
    Sides,
    all_sides,
    check_iteration,
    iterate,
)
from purestep._transforms.algorithms.layerwise.splitting import matrices_and_rest
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


class ScaleByMuonState(NamedTuple):
    """State of `scale_by_muon`.

    Attributes:
        count, mu: as in `ScaleByAdamState`.
    """

    count: mx.array
    mu: Tree


def scale_by_muon(
    ns_coeffs: Coefficients = STANDARD,
    ns_steps: int = 5,
    beta: float = 0.95,
    eps: float = 1e-8,
    mu_dtype: mx.Dtype | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    matrices: Matrices = None,
    ns_dtype: mx.Dtype = mx.float32,
) -> GradientTransform:
    """Replace gradients by their orthogonalized running mean.

    With `g` the gradient and `t` the number of this update, counted from 1:

        mu = beta * mu + (1 - beta) * g
        m = mu / (1 - beta ** t), or
        m = beta * mu / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta ** t) with nesterov
        update = orthogonalize(m), times sum(m * orthogonalize(m)) if adaptive

    Args:
        ns_coeffs, ns_steps, preconditioning, eps, ns_dtype: as in `orthogonalize`.
        beta: decay of the mean, in [0, 1).
        mu_dtype: the dtype in which `mu` is stored; `None` is float32.
        nesterov: use Nesterov momentum.
        adaptive: multiply by the dual norm of the mean.
        matrices: selects the leaves that are matrices; here every leaf must be one. A function of (path,
            leaf) that returns True, False or `MuonDimensionNumbers`; or a tree of booleans with the structure
            of the parameters; or `None`, which selects leaves of exactly 2 axes. The leaf may be a gradient:
            use only its shape.

    Raises:
        ValueError: at init and update, for a leaf that is not a matrix, with its path.

    Differences from optax:

    1. A weight is [out, in], as in MLX. A weight with more axes, such as [out, height, width, in] of a
       convolution, is treated as [out, everything else] unless `MuonDimensionNumbers` names other axes.
    2. `matrices`, a function of (path, leaf) or a mask, replaces `weight_dimension_numbers`.
    3. `ns_dtype` is new: with mx.bfloat16 the iteration needs half the memory, and less time on a GPU.
    4. The preconditioning "spectral" does not exist: MLX has no singular values on a GPU.
    5. With several rows of coefficients, each row is one step, and `ns_steps` is ignored.

    Reference: Jordan et al., Muon, 2024, kellerjordan.github.io/posts/muon; Bernstein and Newhouse,
    arXiv:2409.20325.

    >>> transform = scale_by_muon()
    >>> params = {"w": mx.zeros((2, 2))}
    >>> updates, _ = transform.update({"w": mx.array([[0.0, 5.0], [0.1, 0.0]])}, transform.init(params))
    >>> (updates["w"] > 0.5).tolist()  # both directions count equally
    [[False, True], [True, False]]
    """
    caller = "scale_by_muon"
    rows, eps = check_iteration(caller, ns_coeffs, ns_steps, preconditioning, eps)
    (beta,) = moments.decays(caller, beta=beta)

    def init(params: Params) -> ScaleByMuonState:
        all_sides(caller, matrices, params)
        return ScaleByMuonState(mx.array(0, mx.int32), moments.zeros(params, mu_dtype))

    def update(
        updates: Updates, state: ScaleByMuonState, params: Params | None = None
    ) -> tuple[Updates, ScaleByMuonState]:
        sides = all_sides(caller, matrices, updates)
        gradients = moments.float32(updates)
        count = scalars.increment(state.count)
        mu = moments.mean(gradients, state.mu, beta)
        if nesterov:
            now = moments.debias(beta, count)
            ahead = beta / moments.bias_correction(beta, scalars.increment(count))
            mean = tree.map(lambda m, g: ahead * m + (1 - beta) * now * g, mu, gradients)
        else:
            mean = moments.corrected(mu, beta, count)

        def direction(path: str, m: mx.array) -> mx.array:
            o = iterate(m, sides[path], rows, preconditioning, eps, ns_dtype)
            return sums.total(m * o) * o if adaptive else o

        updates = tree.map_with_path(direction, mean)
        return updates, ScaleByMuonState(count, moments.stored(mu, mu_dtype))

    return checked(caller, init, update)


def scale_by_shape(matrices: Matrices = None, consistent_rms: float | None = None) -> GradientTransform:
    """Multiply every matrix by a factor that depends on its shape, so that one learning rate suits all.

    The factor is `sqrt(max(1, out / in))`, or `sqrt(max(out, in)) * consistent_rms` if `consistent_rms` is
    given.

    Args:
        matrices: as in `scale_by_muon`.
        consistent_rms: the root mean square of an orthogonal update after scaling, at least 0; 0.2 matches
            AdamW.

    Differences from optax: points 1 and 2 of `scale_by_muon`.

    Reference: Liu et al., Muon is scalable for LLM training, arXiv:2502.16982.

    >>> scale_by_shape().update({"w": mx.ones((4, 1))}, ())[0]["w"][0]
    array([2], dtype=float32)
    """
    caller = "scale_by_shape"
    if consistent_rms is not None:
        consistent_rms = checks.number(caller, "consistent_rms", consistent_rms, least=0)

    def factor(axes: Sides, u: mx.array) -> float | mx.array:
        made, summed = axes.sizes(u)
        if consistent_rms is None:
            return math.sqrt(max(1.0, made / max(summed, 1)))
        return math.sqrt(max(made, summed)) * consistent_rms

    def update(updates: Updates, state: tuple[()], params: Params | None = None) -> tuple[Updates, tuple[()]]:
        sides = all_sides(caller, matrices, updates)
        return tree.map_with_path(lambda p, u: (factor(sides[p], u) * u).astype(u.dtype), updates), state

    return checked(caller, lambda params: (), update)


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

    Matrices are trained by the chain of `scale_by_muon`, `scale_by_shape`, `add_decayed_weights` and
    `scale_by_learning_rate`, other parameters by `adamw`. `matrices_and_rest` joins both. The decay is
    decoupled.

    Embeddings and output heads have the shape of matrices but usually train better with AdamW. To exclude
    them, pass a function such as `matrices=lambda path, leaf: leaf.ndim == 2 and "embed" not in path`.

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        ns_coeffs, ns_steps, beta, adaptive, preconditioning, matrices, ns_dtype: as in `scale_by_muon`.
        eps: added to the norm of a matrix, and to AdamW's denominator; at least 0.
        weight_decay, weight_decay_mask: as in `add_decayed_weights`, for matrices only.
        mu_dtype: the dtype in which means of gradients are stored, also in AdamW; `None` is float32.
        nesterov: use Nesterov momentum, also in AdamW.
        adam_b1, adam_b2, adam_eps_root: `b1`, `b2` and `eps_root` of `adamw`.
        adam_weight_decay: AdamW's weight decay, for all parameters that are not matrices.
        adam_learning_rate: AdamW's learning rate; `None` is `learning_rate`.
        consistent_rms: as in `scale_by_shape`.

    Differences from optax:

    1. Weights are [out, in], and `matrices` replaces `muon_weight_dimension_numbers`: see `scale_by_muon`.

    Reference: Jordan et al., Muon, 2024, kellerjordan.github.io/posts/muon; arXiv:2502.16982.

    >>> params = {"weight": mx.zeros((1, 1)), "bias": mx.zeros(1)}
    >>> transform = muon(0.1, adam_learning_rate=0.5, nesterov=False)
    >>> gradients = {"weight": mx.array([[3.0]]), "bias": mx.array([3.0])}
    >>> updates, _ = transform.update(gradients, transform.init(params), params)
    >>> round(updates["weight"].item(), 1), round(updates["bias"].item(), 1)
    (-0.1, -0.5)
    """
    on_matrices = chain(
        scale_by_muon(
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
        ),
        scale_by_shape(matrices, consistent_rms),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    on_rest = adamw(
        rate, adam_b1, adam_b2, eps, adam_eps_root, mu_dtype, adam_weight_decay, nesterov=nesterov
    )
    return matrices_and_rest(on_matrices, on_rest, matrices)
