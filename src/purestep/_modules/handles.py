"""New handles for the arrays among arguments: other Python objects with the same data."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from purestep._core import tree


def own(value: Any) -> Any:
    """Return the arguments with new handles for their arrays: the caller's arrays are safe from writes."""
    if isinstance(value, mx.array):
        return value.__copy__()
    if type(value) in (dict, list, tuple) or tree.is_namedtuple(value):
        if not any(isinstance(leaf, mx.array) for leaf in _leaves(value)):
            return value
        if type(value) is dict:
            return {key: own(child) for key, child in value.items()}
        children = [own(child) for child in value]
        return type(value)(*children) if tree.is_namedtuple(value) else type(value)(children)
    return value


def _leaves(value: Any) -> Iterator[Any]:
    if type(value) in (dict, list, tuple) or tree.is_namedtuple(value):
        for child in value.values() if type(value) is dict else value:
            yield from _leaves(child)
    else:
        yield value
