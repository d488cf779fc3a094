"""A walk through a module: its containers, objects and functions, with their paths."""

import enum
import functools
import sys
from collections import deque
from collections.abc import Iterator
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from purestep._core import tree
from purestep._modules.modes import Asked, Guard

_ATOMS = (
    str,
    bytes,
    int,
    float,
    complex,
    bool,
    type(None),
    type,
    ModuleType,
    enum.Enum,
    range,
    slice,
    mx.Dtype,
)
_ATOMS += (Guard, Asked)
_HEAP_TYPE = 1 << 9  # the flag of a class that is written in Python


def is_atom(value: Any) -> bool:
    """Return whether copies of a module share this value, such as a number, a name or a global function."""
    if isinstance(value, _ATOMS) or value is Ellipsis or value is NotImplemented:
        return True
    if isinstance(value, BuiltinFunctionType):
        return isinstance(value.__self__, (ModuleType, type(None)))
    return is_global(value)


def is_global(value: Any) -> bool:
    """Return whether a function or class is found in its module under its name."""
    home = sys.modules.get(getattr(value, "__module__", None) or "")
    name = getattr(value, "__name__", None)
    return isinstance(name, str) and home is not None and getattr(home, name, None) is value


def is_plain_object(value: Any) -> bool:
    """Return whether an object consists only of its attributes, as a dataclass does."""
    kind = type(value)
    standard = all(
        getattr(kind, name, None) is getattr(object, name, None)
        for name in ("__reduce_ex__", "__reduce__", "__getstate__", "__deepcopy__", "__copy__")
    )
    return standard and all(base is object or base.__flags__ & _HEAP_TYPE for base in kind.__mro__)


def attributes(value: Any) -> dict[str, Any]:
    """Return the attributes in an object's `__dict__` and `__slots__`."""
    held = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        names = base.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                held[name] = getattr(value, name)
    return held


def below(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values within a container, object or function, each with its path segment."""
    if isinstance(value, dict):
        yield from ((_segment(key), child) for key, child in value.items())
        if type(value) is not dict:
            yield from vars(value).items() if hasattr(value, "__dict__") else ()
    elif isinstance(value, (list, tuple, deque, set, frozenset)):
        yield from ((str(index), child) for index, child in enumerate(value))
    elif isinstance(value, MethodType):
        yield "__self__", value.__self__
        yield "__func__", value.__func__
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif type(value) is FunctionType:
        names = value.__code__.co_freevars
        yield from zip(names, value.__closure__ or (), strict=True)
        yield from (("defaults", value.__defaults__), ("kwdefaults", value.__kwdefaults__))
    elif isinstance(value, CellType):
        try:
            yield "", value.cell_contents
        except ValueError:  # an empty cell
            return
    elif not isinstance(value, mx.array) and is_plain_object(value):
        yield from attributes(value).items()


def walk(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the module, then everything in it except atoms, each value once with its first path."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", module)]
    while waiting:
        path, value = waiting.pop()
        if id(value) in seen or is_atom(value):
            continue
        seen.add(id(value))
        yield path, value
        waiting.extend(reversed([(tree.join(path, name) if name else path, x) for name, x in below(value)]))


def _segment(key: Any) -> str:
    try:
        return tree.key_segment(key)
    except TypeError:
        return repr(key)
