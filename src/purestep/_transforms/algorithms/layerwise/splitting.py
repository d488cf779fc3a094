"""One transform for matrices and another for all other leaves."""

from typing import Any, NamedTuple

from purestep._core import tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.algorithms.layerwise.orthogonal import Matrices, Sides, matrix_sides
from purestep._transforms.core.base import GradientTransform, check_transform, checked, taking_extra


class MatricesAndRestState(NamedTuple):
    """State of `matrices_and_rest`.

    Attributes:
        matrices: the state of `on_matrices`, for a tree with `()` in place of every other leaf.
        rest: the state of `on_rest`, for a tree with `()` in place of every matrix.
    """

    matrices: Tree
    rest: Tree


def matrices_and_rest(
    on_matrices: GradientTransform, on_rest: GradientTransform, matrices: Matrices = None
) -> GradientTransform:
    """Apply one transform to matrices and another to all other leaves.

    Each transform receives its own leaves at their paths and `()` at all other paths, in updates and params.

    Args:
        on_matrices: the transform for the leaves that `matrices` selects.
        on_rest: the transform for the other leaves.
        matrices: as in `scale_by_muon`.

    >>> import mlx.core as mx
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
            tree.map(lambda p, chosen: None, params, matrices)  # raises if the mask is built differently
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
