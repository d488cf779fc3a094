"""Functions that may receive the vectors of `packed`, and others, which receive the model's own trees."""

import functools
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx

from purestep._core import tree
from purestep._core.packing import holds_packed, packed_like, unpacked
from purestep._core.types import Init, Params, Tree, Update, Updates

Function = TypeVar("Function", bound=Callable[..., Any])

# Not an attribute: functools.wraps would copy it to wrappers, which may expect the model's own trees.
_accepting: Any = weakref.WeakSet()


def accepting(fn: Function) -> Function:
    """Note that a function may receive vectors, and return it.

    >>> accepts_packed(accepting(lambda params: ())), accepts_packed(lambda params: ())
    (True, False)
    """
    _accepting.add(fn)
    return fn


def accepts_packed(fn: Any) -> bool:
    """Tell whether a function may receive vectors."""
    try:
        return fn in _accepting
    except TypeError:  # it cannot be hashed
        return False


def init_by_leaf(init: Init) -> Init:
    """Return the `init` of a transform such that it receives the model's own trees."""
    if accepts_packed(init) or not callable(init):
        return init

    @functools.wraps(init)
    def started(params: Params) -> Tree:
        return init(unpacked(params))

    return accepting(started)


def update_by_leaf(caller: str, update: Update, *, users: bool = False) -> Update:
    """Return the `update` of a transform such that it receives the model's own trees.

    Its updates are packed again. Its state keeps the model's own trees, which `init_by_leaf` has given it.

    Args:
        caller: the public name for errors.
        update: the function.
        users: whether a user wrote it. The updates may then be written into, and are packed in any case.
    """
    if accepts_packed(update) or not callable(update):
        return update

    @functools.wraps(update)
    def called(
        updates: Updates, state: Tree, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, Tree]:
        if not holds_packed(updates):
            return update(updates, state, params, **extra)
        seen: dict[int, Any] = {}  # one tree for one argument: a transform may compare them with `is`

        def own(value: Any) -> Any:
            if id(value) not in seen:
                seen[id(value)] = unpacked(value)
            return seen[id(value)]

        given = own(updates)
        out, state = update(given, state, own(params), **{name: own(value) for name, value in extra.items()})
        same = not users and _is_same(out, given)
        return (updates if same else packed_like(caller, out, updates)), state

    return accepting(called)


def _is_same(out: Any, given: Tree) -> bool:
    """Tell whether updates are returned as they came, so that their vectors can be."""
    return out is given or tree.matches(lambda a, b: isinstance(a, mx.array) and a is b, out, given)
