"""From an `mlx.nn.Module` to a pure function and its arrays."""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from purestep import checks, tree
from purestep.rng import forbidden, scope
from purestep.types import Params, Tree

Apply = Callable[..., Any]


def functional(module: nn.Module) -> tuple[Apply, Params, Tree]:
    """Bridge a module to `(apply, params, model_state)`.

    `params` holds the module's trainable arrays under the names of `module.trainable_parameters()`,
    so `module.update(params)` accepts trained ones. `model_state` holds its other arrays: frozen
    weights, running statistics. An array that the module holds in several places (tied weights) is one
    leaf, under its first name, and stays tied.

    `apply(params, *args, rng=None, model_state=None, train=None, **kwargs)` runs the module's forward
    pass with those arrays in place of its own. It is a pure function: the module is left as it was,
    also when the forward pass raises, and may be bridged again; later changes to it do not reach `apply`.
    Nor does `apply` keep the first weights alive: where memory is short, `del` the module.

    - With `rng`, a key, the module runs in training mode and everything random in it (Dropout) is a
      function of that key. Without it the module runs in evaluation mode. `train=` overrides the mode.
    - With `model_state`, apply returns `(out, model_state)`, the state as the forward pass left it.
      Without it, apply returns `out` and uses the arrays the module held when it was bridged.

    Args:
        module: any `mlx.nn.Module`; it is read, never changed.

    Raises:
        ValueError: at the call, when training mode is asked for without a key, when the module draws
            random numbers without one, or rewrites arrays (BatchNorm's statistics) that nobody receives;
            with the path, when params or model_state do not fit the module.

    >>> apply, params, model_state = functional(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)))
    >>> apply(params, mx.ones((3, 4)), rng=mx.random.key(0)).shape
    (3, 2)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"functional: module must be an mlx.nn.Module, got {type(module).__name__}")
    slots = _slots(module)
    trained = _select(module.trainable_parameters(), slots.__contains__)
    trained_paths = set(tree.paths(trained))
    held_back = _pruned(
        _select(module.parameters(), lambda path: path in slots and path not in trained_paths)
    )
    # Copies of the handles, not of the data: writing into the module's arrays does not reach the trees.
    initial_params, initial_state = tree.map(copy.copy, trained), tree.map(copy.copy, held_back)
    module = _hollow(module, slots)
    slots, state_paths = _slots(module), set(tree.paths(held_back))

    def apply(
        params: Params,
        *args: Any,
        rng: mx.array | None = None,
        model_state: Tree = None,
        train: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        train = rng is not None if train is None else train
        if train and rng is None:
            raise checks.refuse("apply", "training mode needs a key: pass rng=, or train=False")
        stateful = model_state is not None
        held = model_state if stateful else initial_state
        _check_names("params", params, trained_paths)
        _check_names("model_state", held, state_paths)
        with _borrowed(module), forbidden("apply") if rng is None else scope(rng):
            module.train(train)
            for path, array in tree.items(params) + tree.items(held):
                for container, key in slots[path]:
                    container[key] = array
            out = module(*args, **kwargs)
            left = tree.map_with_path(lambda path, _: slots[path][0].read(), held)
        if stateful:
            return out, left
        rewritten = [p for (p, a), b in zip(tree.items(held), tree.leaves(left), strict=True) if a is not b]
        if rewritten:
            raise checks.refuse(
                "apply",
                f"the forward pass rewrote {', '.join(rewritten)}, which would be lost: pass model_state= "
                "and take (out, model_state), or run with train=False",
            )
        return out

    return apply, initial_params, initial_state


def _hollow(module: nn.Module, slots: dict[str, list["_Slot"]]) -> nn.Module:
    """Copy a module without its parameters, so that `apply` keeps no second set of weights alive.

    Only a module whose copy is sure to do the same is copied. One that holds a lock, a file, or a function
    with variables of its own (which may lead back to the module's weights) is borrowed instead.
    """
    shared: dict[int, Any] = {id(places[0].read()): mx.array(0.0) for places in slots.values()}
    for leaf in _other_leaves(module):
        if isinstance(leaf, MethodType):
            continue  # copied with the module that it belongs to
        if not (isinstance(leaf, _PLAIN) or _is_global(leaf)):
            return module
        shared.setdefault(id(leaf), leaf)
    try:
        return copy.deepcopy(module, shared)
    except TypeError:  # a method of something that cannot be copied
        return module


_PLAIN = (mx.array, mx.Dtype, str, bytes, int, float, complex, type(None))


def _is_global(value: Any) -> bool:
    """Tell whether a function or class is the one that its module has under its name."""
    home = sys.modules.get(getattr(value, "__module__", None) or "")
    return value is not None and getattr(home, getattr(value, "__name__", ""), None) is value


def _other_leaves(node: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Walk everything that a module's containers and attributes hold."""
    seen = set() if seen is None else seen
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, (dict, list, tuple, set)):
        held = list(node.values()) if isinstance(node, dict) else list(node)
        for child in held + (list(vars(node).values()) if isinstance(node, nn.Module) else []):
            yield from _other_leaves(child, seen)
    else:
        yield node


class _Slot(NamedTuple):
    container: Any
    key: Any

    def read(self) -> Any:
        return self.container[self.key]


def _slots(module: nn.Module) -> dict[str, list[_Slot]]:
    """Map each array of the module, by its first path, to every place that holds it."""
    slots: dict[str, list[_Slot]] = {}
    owners: dict[int, str] = {}
    for path, slot in _all_slots("", module):
        owner = owners.setdefault(id(slot.read()), path)
        slots.setdefault(owner, []).append(slot)
    return slots


def _all_slots(path: str, node: Any) -> Iterator[tuple[str, _Slot]]:
    for segment, key, child in _entries(node):
        below = tree.join(path, segment)
        if isinstance(child, mx.array):
            yield below, _Slot(node, key)
        else:
            yield from _all_slots(below, child)


def _entries(node: Any) -> Iterator[tuple[str, Any, Any]]:
    """Walk a container as `Module.parameters` does: names that start with `_` are private."""
    if isinstance(node, dict):
        for key, child in node.items():
            if not (isinstance(node, nn.Module) and key.startswith("_")):
                yield tree.key_segment(key), key, child
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield str(index), index, child


def _select(node: Any, keep: Callable[[str], bool], path: str = "") -> Any:
    """Keep the named arrays of `Module.parameters()`; containers stay, so list positions do too."""
    if isinstance(node, dict):
        named = [(tree.join(path, tree.key_segment(key)), key, child) for key, child in node.items()]
        return {
            key: child if isinstance(child, mx.array) else _select(child, keep, name)
            for name, key, child in named
            if not isinstance(child, mx.array) or keep(name)
        }
    named = [(tree.join(path, str(index)), child) for index, child in enumerate(node)]
    dropped = [name for name, child in named if isinstance(child, mx.array) and not keep(name)]
    if dropped and len(dropped) < len(named):
        raise checks.refuse(
            "functional", f"{dropped[0]} cannot be left out of its list: tie it by name instead"
        )
    return [
        child if isinstance(child, mx.array) else _select(child, keep, name)
        for name, child in named
        if name not in dropped
    ]


def _pruned(node: Any) -> Any:
    """Drop the dict entries that hold no arrays."""
    if isinstance(node, dict):
        return {key: child for key, child in ((k, _pruned(c)) for k, c in node.items()) if tree.leaves(child)}
    if isinstance(node, list):
        children = [_pruned(child) for child in node]
        return children if tree.leaves(children) else []
    return node


def _check_names(name: str, held: Tree, want: set[str]) -> None:
    got = set(tree.paths(held))
    if got != want:
        lines = [f"lacks {path}" for path in sorted(want - got)]
        lines += [f"has {path}" for path in sorted(got - want)]
        raise checks.refuse("apply", f"{name} does not fit the module: it {', '.join(lines[:10])}")


@contextmanager
def _borrowed(module: nn.Module) -> Iterator[None]:
    """Put every container of the module back as it was, whatever the forward pass did to it."""
    saved: list[tuple[Any, Any, dict[str, Any] | None]] = []
    seen: set[int] = set()
    waiting: list[Any] = [module]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, (dict, list, tuple)) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, dict):
            saved.append((node, dict(node), dict(vars(node)) if isinstance(node, nn.Module) else None))
        elif isinstance(node, list):
            saved.append((node, list(node), None))
        waiting.extend(node.values() if isinstance(node, dict) else node)
    try:
        yield
    finally:
        for node, content, attributes in saved:
            if isinstance(node, dict):
                dict.clear(node)
                dict.update(node, content)
            else:
                node[:] = content
            if attributes is not None:
                vars(node).clear()
                vars(node).update(attributes)
