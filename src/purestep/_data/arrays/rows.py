"""Rows of arrays of several kinds: MLX, numpy, memory maps, sequences."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Batch, Tree


def count_of(caller: str, arrays: Tree) -> int:
    """Return the number of rows; refuse arrays of different lengths, and other values."""
    counts: dict[str, int] = {}
    for path, leaf in _items(arrays):
        shown = path or "arrays"
        if not hasattr(leaf, "__getitem__") or isinstance(leaf, (str, bytes)):
            raise TypeError(f"{caller}: {shown} must be an array or a sequence, got {checks.shown(leaf)}")
        if getattr(leaf, "ndim", 1) == 0:
            raise checks.error(caller, f"{shown} must have a first axis of rows, got a 0-d array")
        counts[shown] = len(leaf)
    if not counts:
        raise checks.error(caller, "arrays must hold at least one array, got none")
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{path} has {count}" for path, count in counts.items())
        raise checks.error(caller, f"arrays must have the same number of rows: {listed}")
    count = next(iter(counts.values()))
    if count == 0:
        raise checks.error(caller, "arrays must have at least one row, got 0")
    return count


def gathered(arrays: Tree, numbers: Sequence[int]) -> Batch:
    """Return these rows of every array, as MLX arrays."""
    if isinstance(arrays, dict):
        return {name: gathered(child, numbers) for name, child in arrays.items()}
    if _is_rows(arrays):
        return _taken(arrays, list(numbers))
    children = [gathered(child, numbers) for child in arrays]
    return type(arrays)(*children) if tree.is_namedtuple(arrays) else type(arrays)(children)


def _items(arrays: Tree, path: str = "") -> "list[tuple[str, Any]]":
    if isinstance(arrays, dict):
        return [item for name, child in arrays.items() for item in _items(child, tree.join(path, str(name)))]
    if _is_rows(arrays):
        return [(path, arrays)]
    names = arrays._fields if tree.is_namedtuple(arrays) else range(len(arrays))
    return [
        item
        for name, child in zip(names, arrays, strict=True)
        for item in _items(child, tree.join(path, str(name)))
    ]


def _is_rows(value: Any) -> bool:
    """Tell whether a value is an array or a sequence of rows, not a container of arrays."""
    if not isinstance(value, (list, tuple)):
        return True
    return not any(isinstance(child, dict) or hasattr(child, "shape") for child in value) or not value


def _taken(array: Any, numbers: list[int]) -> mx.array:
    if isinstance(array, mx.array):
        return mx.take(array, mx.array(numbers, mx.int64 if array.shape[0] > 2**31 - 1 else mx.int32), axis=0)
    if hasattr(array, "shape"):  # numpy, and what indexes like it
        return mx.array(array[numbers])
    return mx.array([array[number] for number in numbers])
