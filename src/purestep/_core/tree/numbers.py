"""Arithmetic over all leaves of a tree."""

import mlx.core as mx

from purestep._core.tree.mapping import leaves, map
from purestep._core.types import Tree


def cast(tree: Tree, dtype: mx.Dtype) -> Tree:
    """Return the tree with its floating-point leaves in `dtype`; integer and boolean leaves stay the same."""
    return map(lambda x: x.astype(dtype) if mx.issubdtype(x.dtype, mx.floating) else x, tree)


def zeros_like(tree: Tree, dtype: mx.Dtype | None = None) -> Tree:
    """Return zeros of the same shapes, in `dtype` if given."""
    return map(lambda x: mx.zeros(x.shape, dtype or x.dtype), tree)


def added(terms: list[mx.array]) -> mx.array:
    """Return the sum of 0-d arrays. Neighbours are added first, since a long sum in order loses digits."""
    while len(terms) > 1:
        pairs = zip(terms[::2], terms[1::2], strict=False)
        terms = [a + b for a, b in pairs] + terms[len(terms) - len(terms) % 2 :]
    return terms[0] if terms else mx.array(0.0)


def size(tree: Tree) -> int:
    """Return the number of elements in all leaves together."""
    return sum(x.size for x in leaves(tree))
