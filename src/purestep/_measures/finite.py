"""The leaves with NaN or infinite elements."""

from typing import Any

import mlx.core as mx

from purestep._core import tree
from purestep._core.packing import unpacked
from purestep._core.types import Tree


def nonfinite_paths(values: Tree) -> list[str]:
    """Return the paths of the leaves with a NaN or an infinite element, in the order of the tree.

    Waits for the device once for the whole tree: call it between steps, not in a step.

    Raises:
        TypeError: for a leaf that is not an array.

    >>> nonfinite_paths({"a": mx.array([1.0, mx.inf]), "b": mx.array(2.0)})
    ['a']
    """
    values = unpacked(values)
    for path, leaf in tree.items(values):
        if not isinstance(leaf, mx.array):
            kind = type(leaf).__name__
            raise TypeError(f"nonfinite_paths: {path or 'the tree'} must be an array, got {kind}")
    named = [(path, leaf) for path, leaf in tree.items(values) if mx.issubdtype(leaf.dtype, mx.inexact)]
    if not named:
        return []
    finite: Any = mx.stack([mx.isfinite(leaf).all() for _, leaf in named]).tolist()
    return [path for (path, _), whole in zip(named, finite, strict=True) if not whole]
