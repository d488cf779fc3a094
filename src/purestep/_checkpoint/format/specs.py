"""Check the tree of a stored state, and return dtype and shape of each array."""

from collections.abc import Mapping
from typing import Any

from purestep._checkpoint.format.header import CorruptError
from purestep._checkpoint.format.kinds import DTYPES as DTYPES
from purestep._checkpoint.format.kinds import is_kind
from purestep._checkpoint.format.kinds import nbytes as nbytes
from purestep._core import tree

Leaves = Mapping[str, tuple[str, tuple[int, ...]]]


def leaf_specs(caller: str, source: str, spec: Any) -> Leaves:
    """Return the dtype's name and the shape of every array that a spec describes, by path.

    Raises:
        CorruptError: if it is not a `tree.spec`: an unknown container, dtype or shape, or a duplicate name.
    """
    try:
        described = _is_spec(spec)
    except RecursionError:
        described = False
    if not described:
        raise CorruptError(f"{caller}: {source} is damaged: it does not describe a tree of arrays")
    leaves = dict(tree.spec_items(spec))
    for path, (dtype, shape) in leaves.items():
        if not is_kind(dtype, shape):
            named = path or "its array"
            raise CorruptError(
                f"{caller}: {source} is damaged: {named} has an unknown dtype or an invalid shape"
            )
    return leaves


def _is_spec(node: Any) -> bool:
    match node:
        case ["none"]:
            return True
        case ["array", str(), list()]:
            return True
        case ["list" | "tuple", list(below)]:
            return all(map(_is_spec, below))
        case ["dict", list(below)]:
            return _are_pairs(below) and all(type(key) in (str, int) for key, _ in below)
        case ["namedtuple", str(), list(below)]:
            return _are_pairs(below) and all(type(key) is str and key.isidentifier() for key, _ in below)
    return False


def _are_pairs(below: list[Any]) -> bool:
    for pair in below:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str | int)):
            return False
        if not _is_spec(pair[1]):
            return False
    return len({key for key, _ in below}) == len(below)
