"""Comparisons of trees: bit for bit, and within a tolerance for each dtype."""

from typing import Any

import mlx.core as mx

from purestep._core import tree
from purestep._core.types import Tree

# Relative and absolute tolerances for a few operations in a dtype.
TOLERANCES = {mx.float32: 2e-6, mx.bfloat16: 2**-7, mx.float16: 2**-10}


def bits(tree_of_arrays: Tree) -> list[tuple[Any, ...]]:
    """Return the path, dtype, shape and bytes of every leaf, to compare trees bit for bit, also NaN."""
    return [(path, *_raw(leaf)) for path, leaf in tree.items(tree_of_arrays)]


def same_bits(first: Tree, second: Tree) -> bool:
    """Return whether two trees have the same structure and the same bits.

    >>> same_bits({"a": mx.array([mx.nan])}, {"a": mx.array([mx.nan])})
    True
    """
    return tree.alike(first, second) and bits(first) == bits(second)


def first_difference(got: Tree, want: Tree, *, factor: float = 1.0) -> str | None:
    """Return a line about the first leaf that differs by more than the tolerance of its dtype, or `None`.

    Args:
        got: a tree of arrays.
        want: the expected tree.
        factor: multiplies the tolerances.

    >>> first_difference({"a": mx.array(1.0)}, {"a": mx.array(1.1)})
    'a differs by 0.1: 1.0 instead of 1.1'
    """
    if not tree.alike(got, want):
        return "; ".join(tree.differences(tree.spec(got), tree.spec(want), "one", "the other"))
    for (path, a), b in zip(tree.items(got), tree.leaves(want), strict=True):
        tolerance = factor * TOLERANCES.get(a.dtype, 0.0)
        a, b = a.astype(mx.float32).reshape(-1), b.astype(mx.float32).reshape(-1)
        close = mx.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
        if a.size and not close.item():
            gap = mx.abs(a - b)
            at = int(mx.argmax(mx.where(mx.isnan(gap), mx.inf, gap)).item())  # type: ignore[arg-type]
            return f"{path} differs by {gap[at].item():.3g}: {a[at].item():.6} instead of {b[at].item():.6}"
    return None


def _raw(leaf: mx.array) -> tuple[Any, ...]:
    raw: Any = leaf.view(mx.uint16) if leaf.dtype == mx.bfloat16 else leaf
    return tree.dtype_name(leaf.dtype), leaf.shape, bytes(memoryview(raw))
