"""Copies of modules. A copy shares no value that a forward pass could change."""

import copy
import functools
import gc
from collections import deque
from collections.abc import Mapping
from types import CellType, FunctionType, MethodType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.utils import checkpoint

from purestep._core import checks, tree
from purestep._core.tracing import context
from purestep._modules.walking import attributes, is_atom, is_plain_object

_SEQUENCES: Any = (list, deque)
_TRANSFORMED: Any = type(mx.checkpoint(len))  # mx.compile, mx.grad and mx.vmap return this type too


class UncopyableError(Exception):
    """Raised for a value that cannot be copied; `args` are its path and the name of its type."""


def copied(
    module: nn.Module, replaced: dict[int, Any], classes: Mapping[type, type] | None = None
) -> dict[int, Any]:
    """Copy a module with its layers, its plain objects, and functions with closures over them.

    Args:
        module: the module; it is only read.
        replaced: replacements for some of its values, by the `id` of the value.
        classes: the classes of copied layers, by the exact class of the layer. Other layers keep theirs.

    Returns:
        The copy of each copied value, by the `id` of the value; the module is among them.

    Raises:
        UncopyableError: for a value that cannot be copied, such as a lock or a generator.
        ValueError: for a function that `mx.compile`, `mx.grad` or a similar function made around arrays of
            the module.
    """
    copier = _Copier(replaced, {} if classes is None else classes)
    copier.copy("", module)
    return copier.memo


class _Copier:
    def __init__(self, replaced: dict[int, Any], classes: Mapping[type, type]):
        self.memo: dict[int, Any] = dict(replaced)
        self.classes = classes

    def copy(self, path: str, value: Any) -> Any:
        if id(value) in self.memo:
            return self.memo[id(value)]
        if is_atom(value):
            return value
        if type(value) is _TRANSFORMED:  # tested first: isinstance sees the type of the function inside
            return self._transformed(path, value)
        if isinstance(value, mx.array):
            return self._keep(value, copy.copy(value))
        if isinstance(value, dict):
            return self._dict(path, value)
        if isinstance(value, _SEQUENCES):
            new = self._keep(value, type(value)() if type(value) is not deque else deque(maxlen=value.maxlen))
            new.extend(self.copy(tree.join(path, str(i)), x) for i, x in enumerate(value))
            self._attributes(path, value, new)
            return new
        if isinstance(value, (set, frozenset)):
            return self._keep(value, type(value)(self.copy(path, x) for x in value))
        if isinstance(value, tuple):
            children = [self.copy(tree.join(path, str(i)), x) for i, x in enumerate(value)]
            return type(value)(*children) if tree.is_namedtuple(value) else type(value)(children)
        if isinstance(value, MethodType):
            return MethodType(self.copy(path, value.__func__), self.copy(path, value.__self__))
        if isinstance(value, functools.partial):
            args = [self.copy(path, x) for x in value.args]
            keywords = {name: self.copy(path, x) for name, x in value.keywords.items()}
            return self._keep(value, functools.partial(self.copy(path, value.func), *args, **keywords))
        if isinstance(value, FunctionType):
            return self._function(path, value)
        if isinstance(value, CellType):
            return self._cell(path, value)
        return self._object(path, value)

    def _keep(self, value: Any, new: Any) -> Any:
        self.memo[id(value)] = new
        return new

    def _dict(self, path: str, value: dict[Any, Any]) -> Any:
        if type(value) is dict or isinstance(value, nn.Module):
            kind: Any = self.classes.get(type(value), type(value))
            new = kind.__new__(kind)
        else:
            new = copy.copy(value)  # a defaultdict keeps its factory
            dict.clear(new)
        self._keep(value, new)
        for key, child in value.items():
            dict.__setitem__(new, key, self.copy(tree.join(path, str(key)), child))
        self._attributes(path, value, new)
        return new

    def _attributes(self, path: str, value: Any, new: Any) -> None:
        if hasattr(value, "__dict__"):
            vars(new).update({k: self.copy(tree.join(path, k), x) for k, x in vars(value).items()})

    def _function(self, path: str, value: FunctionType) -> Any:
        if not value.__closure__ and not value.__defaults__ and not value.__kwdefaults__:
            return value  # the function holds no values
        cells = tuple(self.copy(path, cell) for cell in value.__closure__ or ())
        new = FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
        self._keep(value, new)
        new.__defaults__ = self.copy(path, value.__defaults__)
        new.__kwdefaults__ = self.copy(path, value.__kwdefaults__)
        new.__qualname__, new.__module__, new.__doc__ = value.__qualname__, value.__module__, value.__doc__
        vars(new).update({name: self.copy(path, x) for name, x in vars(value).items()})
        return new

    def _cell(self, path: str, value: CellType) -> Any:
        new = self._keep(value, CellType())
        try:
            held = value.cell_contents
        except ValueError:  # an empty cell
            return new
        new.cell_contents = self.copy(path, held)
        return new

    def _transformed(self, path: str, value: Any) -> Any:
        held = [x for x in gc.get_referents(value) if x is not None and not isinstance(x, type)]
        if len(held) == 1 and isinstance(held[0], FunctionType):
            code = held[0].__code__
            if code.co_name == "inner_fn" and code.co_filename == checkpoint.__code__.co_filename:
                return self._keep(value, context.checkpoint(self.copy(path, held[0])))
        if all(self.copy(path, x) is x for x in held):
            return value  # the function depends only on its arguments
        raise checks.error(
            "functional",
            f"{path} is a function that mx.compile, mx.checkpoint, mx.grad or mx.vmap made when the module "
            "was built, around arrays of the module; make it in the forward pass, or compile the whole step",
        )

    def _object(self, path: str, value: Any) -> Any:
        held = attributes(value)
        if is_plain_object(value) and (held or hasattr(value, "__dict__")):
            new = self._keep(value, object.__new__(type(value)))
            for name, child in held.items():
                object.__setattr__(new, name, self.copy(tree.join(path, name), child))
            return new
        try:
            return self._keep(value, copy.deepcopy(value, self.memo))
        except Exception:
            raise UncopyableError(path, type(value).__name__) from None
