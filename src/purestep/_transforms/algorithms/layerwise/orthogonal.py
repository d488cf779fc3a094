"""Newton-Schulz orthogonalization, and the selection of matrices in a tree."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import mlx.core as mx

from purestep._core import checks, scalars, sums, tree
from purestep._core.types import Tree
from purestep._transforms.core.quotients import nonzero

STANDARD = (3.4445, -4.7750, 2.0315)
_PRESETS = {
    "standard": (STANDARD,),
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}
_PRECONDITIONINGS = ("frobenius", "aol", "schatten")


class MuonDimensionNumbers(NamedTuple):
    """The axes of a weight that are its inputs and outputs; other axes index separate matrices.

    The defaults are those of an MLX weight [out, in]. The function `matrices` of `scale_by_muon` returns it,
    and `orthogonalize` takes it.

    Attributes:
        reduction_axis: the axis or axes of the inputs, which are summed over.
        output_axis: the axis or axes of the outputs.

    >>> experts = MuonDimensionNumbers(reduction_axis=2, output_axis=1)  # [experts, out, in]
    >>> orthogonalize(mx.random.normal((4, 3, 5), key=mx.random.key(0)), experts).shape
    (4, 3, 5)
    """

    reduction_axis: int | Sequence[int] = 1
    output_axis: int | Sequence[int] = 0


Coefficients: TypeAlias = str | Sequence[float] | Sequence[Sequence[float]]
"""Three numbers, rows of three numbers, or the name of a preset."""

Matrices: TypeAlias = Callable[[str, mx.array], bool | MuonDimensionNumbers | None] | Tree | None
"""Selects matrices: a function of (path, leaf), a tree of booleans, or `None` for leaves of 2 axes."""


class Sides(NamedTuple):
    """The axes of a matrix, counted from the front: its outputs, and its inputs, which are summed over."""

    output: tuple[int, ...]
    reduction: tuple[int, ...]

    def sizes(self, x: mx.array) -> tuple[int, int]:
        """Return the number of outputs and the number of inputs."""
        return math.prod(x.shape[i] for i in self.output), math.prod(x.shape[i] for i in self.reduction)


def orthogonalize(
    x: mx.array,
    dimension_numbers: MuonDimensionNumbers | None = None,
    *,
    ns_coeffs: Coefficients = STANDARD,
    ns_steps: int = 5,
    preconditioning: str = "frobenius",
    eps: float = 1e-8,
    ns_dtype: mx.Dtype = mx.float32,
) -> mx.array:
    """Move the singular values of a matrix close to 1 by a Newton-Schulz iteration of matrix products.

    The matrix is divided by a norm, so that no singular value exceeds 1. Then this step is repeated:

        A = X X^T;  X = a X + (b A + c A A) X

    With the standard coefficients the singular values end between about 0.7 and 1.2: the coefficients are
    chosen for speed, not for convergence. Singular values below a thousandth of the norm need more than five
    steps.

    Args:
        x: [out, in]; more axes, [out, ...], are treated as [out, everything else].
        dimension_numbers: the axes of inputs and outputs; `None`: [out, everything else].
        ns_coeffs: (a, b, c); or rows of three numbers, one row for each step; or "standard" or "dion".
        ns_steps: the number of steps with a single row, at least 1; ignored for several rows.
        preconditioning: "frobenius" divides by the norm of all elements. "schatten" divides by the root of
            the norm of X X^T, a tighter bound. "aol" divides each row by the root of the absolute row sum of
            X X^T.
        eps: at least 0. For "frobenius" it is added to the norm; for the others it is a lower bound on the
            value under the root.
        ns_dtype: the dtype of the iteration; the norm is computed in float32.

    Returns:
        A float32 array with the shape of `x`.

    Reference: Jordan et al., Muon, 2024, kellerjordan.github.io/posts/muon; "aol" Boissin et al.,
    arXiv:2512.04632; "schatten" Grishina et al., arXiv:2506.10935; "dion" Ahn et al., arXiv:2504.05295.

    >>> near = orthogonalize(mx.diag(mx.array([3.0, 0.5, 1.0])))
    >>> [0.6 < value < 1.3 for value in mx.diag(near).tolist()]
    [True, True, True]
    """
    caller = "orthogonalize"
    rows, eps = check_iteration(caller, ns_coeffs, ns_steps, preconditioning, eps)
    axes = sides(caller, "x", x, True if dimension_numbers is None else dimension_numbers)
    assert axes is not None  # `sides` returns None only for the choices None and False
    return iterate(x, axes, rows, preconditioning, eps, ns_dtype)


def iterate(
    x: mx.array,
    axes: Sides,
    rows: Sequence[Sequence[float]],
    preconditioning: str,
    eps: float,
    ns_dtype: mx.Dtype,
) -> mx.array:
    """Compute `orthogonalize` from arguments that are checked already."""
    x = x.astype(mx.float32)
    if x.size == 0:
        return x
    counted = tuple(i for i in range(x.ndim) if i not in axes.output + axes.reduction)
    order = counted + axes.output + axes.reduction
    moved = x.transpose(order)
    wide = moved.reshape(-1, *axes.sizes(x))
    # The smaller Gram matrix is cheaper. A square matrix is transposed too, so that "aol" sums as in optax.
    turned = wide.shape[1] >= wide.shape[2]
    wide = wide.swapaxes(1, 2) if turned else wide
    wide = _preconditioned(wide, preconditioning, eps).astype(ns_dtype)
    for a, b, c in rows:
        gram = wide @ wide.swapaxes(1, 2)
        wide = a * wide + (b * gram + c * (gram @ gram)) @ wide
    wide = wide.swapaxes(1, 2) if turned else wide
    back = [order.index(i) for i in range(x.ndim)]
    return wide.astype(mx.float32).reshape(moved.shape).transpose(back)


def _preconditioned(x: mx.array, preconditioning: str, eps: float) -> mx.array:
    if preconditioning == "frobenius":
        norm = scalars.root(sums.total(mx.square(x), (1, 2), keepdims=True))
        return x / nonzero(norm, norm + eps, eps)
    gram = x @ x.swapaxes(1, 2)
    if preconditioning == "schatten":
        bound = scalars.root(sums.total(mx.square(gram), (1, 2), keepdims=True))
    else:
        bound = sums.total(mx.abs(gram), 2, keepdims=True)
    return x * mx.rsqrt(nonzero(bound, mx.maximum(bound, eps), eps))


def check_iteration(
    caller: str, ns_coeffs: Coefficients, ns_steps: int, preconditioning: str, eps: float
) -> tuple[Sequence[Sequence[float]], float]:
    """Refuse invalid arguments of `orthogonalize`; return the coefficients of each step and `eps`."""
    ns_steps = checks.integer(caller, "ns_steps", ns_steps, least=1)
    eps = checks.number(caller, "eps", eps, least=0)
    checks.one_of(caller, "preconditioning", preconditioning, _PRECONDITIONINGS)
    if isinstance(ns_coeffs, str):
        checks.one_of(caller, "ns_coeffs", ns_coeffs, _PRESETS)
    given: Any = _PRESETS[ns_coeffs] if isinstance(ns_coeffs, str) else ns_coeffs
    rows = [tuple(row) for row in given] if given and isinstance(given[0], Sequence) else [tuple(given)]
    if any(len(row) != 3 for row in rows):
        raise checks.error(caller, f"ns_coeffs must be three numbers, or rows of three, got {ns_coeffs}")
    rows = [tuple(checks.number(caller, "ns_coeffs", value) for value in row) for row in rows]
    return rows * ns_steps if len(rows) == 1 else rows, eps


def matrix_sides(caller: str, matrices: Matrices, params: Tree) -> dict[str, Sides | None]:
    """Return, by path, the axes of every leaf that is a matrix, and `None` for the others."""
    known = None if matrices is None or callable(matrices) else dict(tree.items(matrices))

    def choice(path: str, leaf: mx.array) -> Any:
        if callable(matrices):
            return matrices(path, leaf)
        if known is None:
            return leaf.ndim == 2
        if path not in known:
            raise checks.error(caller, f"{path or 'the tree'} is in params, not in matrices")
        return known[path]

    return {path: sides(caller, path, leaf, choice(path, leaf)) for path, leaf in tree.items(params)}


def all_sides(caller: str, matrices: Matrices, params: Tree) -> dict[str, Sides]:
    """Return the axes of every leaf by path; refuse a leaf that is not a matrix."""
    found: dict[str, Sides] = {}
    for path, axes in matrix_sides(caller, matrices, params).items():
        if axes is None:
            shape = dict(tree.items(params))[path].shape
            raise checks.error(
                caller, f"every leaf must be a matrix, got shape {shape} at {path or 'the tree'}"
            )
        found[path] = axes
    return found


def sides(caller: str, path: str, leaf: mx.array, choice: Any) -> Sides | None:
    """Return the axes of a leaf for the user's choice; `None` for a leaf that is not a matrix."""
    if choice is None or choice is False:
        return None
    path = path or "the tree"
    if choice is True:
        choice = MuonDimensionNumbers(tuple(range(1, leaf.ndim)), 0)
    if not isinstance(choice, MuonDimensionNumbers):
        raise checks.error(
            caller, f"matrices must be True, False or MuonDimensionNumbers, got {choice!r} at {path}"
        )
    if leaf.ndim < 2:
        raise checks.error(caller, f"a matrix must have at least 2 axes, got shape {leaf.shape} at {path}")
    reduction, output = (
        (axes,) if isinstance(axes, int) else tuple(axes)
        for axes in (choice.reduction_axis, choice.output_axis)
    )
    given = output + reduction
    if not all(-leaf.ndim <= i < leaf.ndim for i in given):
        raise checks.error(caller, f"axes must exist in shape {leaf.shape}, got {choice} at {path}")
    found = Sides(tuple(i % leaf.ndim for i in output), tuple(i % leaf.ndim for i in reduction))
    if not output or not reduction or len(set(found.output + found.reduction)) != len(given):
        raise checks.error(caller, f"each side must have an axis, and no axis twice, got {choice} at {path}")
    return found
