"""Muon: momentum, each matrix of it replaced by an orthogonal one close by."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

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
    matrix_sides,
)
from purestep._transforms.core.base import GradientTransform, check_transform, checked, taking_extra
from purestep._transforms.core.combining import chain
from purestep._transforms.core.moments import bias_correction
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


class ScaleByMuonState(NamedTuple):
    """State of `scale_by_muon`.

    Attributes:
        count: 0-d int32, updates made.
        mu: like params, the running mean of gradients; float32 unless `mu_dtype` says otherwise.
    """

    count: mx.array
    mu: Tree


class MatricesAndRestState(NamedTuple):
    """State of `matrices_and_rest`.

    Attributes:
        matrices: the state of the matrices' transform, made of parameters that are `()` elsewhere.
        rest: the state of the rest's, made of parameters that are `()` at every matrix.
    """

    matrices: Tree
    rest: Tree


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
    """Replace gradients by the orthogonalized mean of their past.

    It differs from optax in these points:

    1. A weight is [out, in], as MLX has it, and one of more axes that is named a matrix (a convolution's
       [out, height, width, in]) is [out, everything else]; `MuonDimensionNumbers` says otherwise.
    2. `matrices` stands for `weight_dimension_numbers`: a function of (path, leaf), or a mask.
    3. `ns_dtype` is new: in mx.bfloat16 the iteration takes half the memory, and on a GPU less time.
    4. There is no preconditioning "spectral": MLX has no singular values on a GPU.
    5. Several rows of coefficients are one step each, and `ns_steps` is not looked at.

    With `g` the gradient and `t` the number of this update, counted from 1:

        mu = beta * mu + (1 - beta) * g
        m = mu / (1 - beta ** t), or
        m = beta * mu / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta ** t) with nesterov
        update = orthogonalize(m), times sum(m * orthogonalize(m)) if adaptive

    Args:
        ns_coeffs: as in `orthogonalize`.
        ns_steps: as in `orthogonalize`.
        beta: decay of the mean, in [0, 1).
        eps: as in `orthogonalize`.
        mu_dtype: the dtype in which `mu` is stored.
        nesterov: look ahead by one step of momentum.
        adaptive: multiply by the dual norm of the mean.
        preconditioning: as in `orthogonalize`.
        matrices: which leaves are matrices, and by which axes; here all of them must be. A function of
            (path, leaf) to True, False or `MuonDimensionNumbers`, a tree of booleans built like the
            parameters, or `None` for those of exactly 2 axes. The leaf may be a gradient: ask its shape.
        ns_dtype: as in `orthogonalize`.

    Raises:
        ValueError: at init and update, for a leaf that is not a matrix, with its path.

    Reference: Jordan et al., Muon, 2024, kellerjordan.github.io/posts/muon; Bernstein and Newhouse,
    arXiv:2409.20325.

    >>> transform = scale_by_muon()
    >>> params = {"w": mx.zeros((2, 2))}
    >>> updates, _ = transform.update({"w": mx.array([[0.0, 5.0], [0.1, 0.0]])}, transform.init(params))
    >>> (updates["w"] > 0.5).tolist()  # both directions count, whatever their size
    [[False, True], [True, False]]
    """
    caller = "scale_by_muon"
    rows, eps = check_iteration(caller, ns_coeffs, ns_steps, preconditioning, eps)
    beta = checks.number(caller, "beta", beta, least=0, below=1)

    def init(params: Params) -> ScaleByMuonState:
        all_sides(caller, matrices, params)
        return ScaleByMuonState(mx.array(0, mx.int32), tree.zeros_like(params, mu_dtype or mx.float32))

    def update(
        updates: Updates, state: ScaleByMuonState, params: Params | None = None
    ) -> tuple[Updates, ScaleByMuonState]:
        sides = all_sides(caller, matrices, updates)
        gradients = tree.map(lambda g: g.astype(mx.float32), updates)
        count = scalars.increment(state.count)
        mu = tree.map(lambda g, m: beta * m.astype(mx.float32) + (1 - beta) * g, gradients, state.mu)
        now = 1 / bias_correction(beta, count)
        if nesterov:
            ahead = beta / bias_correction(beta, scalars.increment(count))
            mean = tree.map(lambda m, g: ahead * m + (1 - beta) * now * g, mu, gradients)
        else:
            mean = tree.map(lambda m: now * m, mu)

        def direction(path: str, m: mx.array) -> mx.array:
            o = iterate(m, sides[path], rows, preconditioning, eps, ns_dtype)
            return sums.total(m * o) * o if adaptive else o

        updates = tree.map_with_path(direction, mean)
        if mu_dtype is not None:
            mu = tree.map(lambda m: m.astype(mu_dtype), mu)
        return updates, ScaleByMuonState(count, mu)

    return checked(caller, init, update)


def scale_by_shape(matrices: Matrices = None, consistent_rms: float | None = None) -> GradientTransform:
    """Multiply every matrix by a factor of its shape, so that one learning rate suits all shapes.

        sqrt(max(1, out / in)), or sqrt(max(out, in)) * consistent_rms

    It differs from optax in points 1 and 2 of `scale_by_muon`.

    Args:
        matrices: as in `scale_by_muon`.
        consistent_rms: at least 0: the root mean square that an orthogonal update then has; 0.2 is AdamW's.

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


def matrices_and_rest(
    on_matrices: GradientTransform, on_rest: GradientTransform, matrices: Matrices = None
) -> GradientTransform:
    """Hand the matrices to one transform and every other leaf to another.

    Each sees its own leaves at their paths and `()` at the others, in updates and in params.

    Args:
        on_matrices: for the leaves that `matrices` selects.
        on_rest: for the others.
        matrices: as in `scale_by_muon`.

    >>> from purestep.transforms import scale
    >>> split = matrices_and_rest(scale(2.0), scale(3.0))
    >>> params = {"w": mx.ones((1, 1)), "b": mx.ones(1)}
    >>> split.update(params, split.init(params), params)[0]
    {'w': array([[2]], dtype=float32), 'b': array([3], dtype=float32)}
    """
    caller = "matrices_and_rest"
    check_transform(caller, "on_matrices", on_matrices)
    check_transform(caller, "on_rest", on_rest)
    update_matrices, update_rest = taking_extra(on_matrices), taking_extra(on_rest)

    def split(values: Tree, sides: dict[str, Sides | None]) -> tuple[Tree, Tree]:
        return (
            tree.map_with_path(lambda path, x: x if sides[path] else (), values),
            tree.map_with_path(lambda path, x: () if sides[path] else x, values),
        )

    def init(params: Params) -> MatricesAndRestState:
        if matrices is not None and not callable(matrices):
            tree.map(lambda p, chosen: None, params, matrices)  # refuses a mask built differently
        first, second = split(params, matrix_sides(caller, matrices, params))
        return MatricesAndRestState(on_matrices.init(first), on_rest.init(second))

    def update(
        updates: Updates, state: MatricesAndRestState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MatricesAndRestState]:
        sides = matrix_sides(caller, matrices, updates)
        weights = (None, None) if params is None else split(params, sides)
        first, second = split(updates, sides)
        first, matrices_state = update_matrices(first, state.matrices, weights[0], **extra)
        second, rest_state = update_rest(second, state.rest, weights[1], **extra)
        made, other = iter(tree.leaves(first)), iter(tree.leaves(second))
        updates = tree.map_with_path(lambda path, u: next(made if sides[path] else other), updates)
        return updates, MatricesAndRestState(matrices_state, rest_state)

    return checked(caller, init, update)


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
