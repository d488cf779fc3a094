"""Rows of arrays of several kinds: MLX, numpy, memory maps, sequences."""

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Batch, Tree
from purestep._data.core.converting import array_of


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


def prepared(caller: str, arrays: Tree, path: str = "") -> Tree:
    """Return arrays with lists of rows as MLX arrays; refuse what is not an array of numbers.

    A list is converted once, so all batches have its dtype: batches of [1, 2, 2.5] are float32.

    >>> prepared("Batches", {"x": [1, 2, 2.5]})
    {'x': array([1, 2, 2.5], dtype=float32)}
    """
    if isinstance(arrays, dict):
        return {name: prepared(caller, child, tree.join(path, str(name))) for name, child in arrays.items()}
    if _is_rows(arrays):
        return _checked(caller, path or "arrays", arrays)
    names = arrays._fields if tree.is_namedtuple(arrays) else range(len(arrays))
    children = [
        prepared(caller, child, tree.join(path, str(name))) for name, child in zip(names, arrays, strict=True)
    ]
    return type(arrays)(*children) if tree.is_namedtuple(arrays) else type(arrays)(children)


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
    if tree.is_namedtuple(value):
        return False
    return not any(isinstance(child, dict) or getattr(child, "shape", ()) != () for child in value)


def _checked(caller: str, path: str, value: Any) -> Any:
    """Return an array or a sequence of rows that gives rows as MLX arrays."""
    if isinstance(value, mx.array):
        return value
    if hasattr(value, "iloc"):  # its rows have labels, which are not positions
        raise TypeError(f"{caller}: {path} must be an array, got a {type(value).__name__}; use to_numpy()")
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__getitem__"):
        raise TypeError(f"{caller}: {path} must be an array or a sequence, got {checks.shown(value)}")
    if isinstance(value, (list, tuple)):
        numbers = [checks.python_number(each) for each in value]
        try:
            return mx.array(numbers)
        except (ValueError, RuntimeError, TypeError) as error:
            rule = f"{path} must be a list of numbers, or of rows of numbers of one shape"
            raise checks.error(caller, f"{rule}: {error}") from None
    if getattr(value, "ndim", 1) > 0 and len(value):
        try:
            first = value[[0]] if hasattr(value, "shape") else value[0]
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            raise TypeError(f"{caller}: {path} must give rows by their numbers, got {found}") from None
        array_of(caller, path, first)
    return value


def _taken(array: Any, numbers: list[int]) -> mx.array:
    """Return rows of an array, or of a sequence that gives one row at a time."""
    if isinstance(array, mx.array):
        return mx.take(array, mx.array(numbers, mx.int64 if array.shape[0] > 2**31 - 1 else mx.int32), axis=0)
    if hasattr(array, "shape"):  # numpy, and what indexes like it
        return mx.array(array[numbers])
    rows = [array[number] for number in numbers]
    if hasattr(rows[0], "shape"):
        return mx.stack([row if isinstance(row, mx.array) else mx.array(row) for row in rows])
    return mx.array(rows)
