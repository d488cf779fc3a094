"""Slots: the places in a module that hold its arrays, by path, and which of the arrays are trained."""

import difflib
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from purestep._core import checks, tree
from purestep._core.tree.forms import Form, fits, form, gathered
from purestep._core.tree.patterns import compile_pattern, shown_paths
from purestep._core.types import Params, Tree
from purestep._modules.contents import Contents, Place


class Slot(NamedTuple):
    """A key of a container that holds an array."""

    container: Any
    key: Any

    def read(self) -> Any:
        """Return the value in the slot."""
        return self.container[self.key]

    def write(self, value: Any) -> None:
        """Put a value into the slot."""
        self.container[self.key] = value


class PrivateSlot(Slot):
    """A slot of an array that `Module.parameters` omits: under a private name, or in a plain object."""

    path: str = ""

    def write(self, value: Any) -> None:
        if isinstance(self.container, (dict, list)):
            self.container[self.key] = value
        else:
            object.__setattr__(self.container, self.key, value)

    def read(self) -> Any:
        if isinstance(self.container, (dict, list)):
            return self.container[self.key]
        return getattr(self.container, self.key)


def all_slots(path: str, node: Any) -> Iterator[tuple[str, Slot]]:
    """Yield every slot of an array of `module.parameters()`, with its path."""
    for segment, key, child in _entries(node):
        below = tree.join(path, segment)
        if isinstance(child, mx.array):
            yield below, Slot(node, key)
        else:
            yield from all_slots(below, child)


def named_once(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return every layer once, with its first path in the order of the module's attributes."""
    paths: dict[int, tuple[str, nn.Module]] = {}
    # MLX yields the layers in reverse order, and a shared layer once a path.
    for path, layer in reversed(module.named_modules()):
        paths.setdefault(id(layer), (path, layer))
    return list(paths.values())


def slots_of(module: nn.Module) -> dict[str, list[Slot]]:
    """Return every slot of each array of `module.parameters()`, by the first path of the array."""
    slots: dict[str, list[Slot]] = {}
    owners: dict[int, str] = {}
    for path, slot in all_slots("", module):
        owner = owners.setdefault(id(slot.read()), path)
        slots.setdefault(owner, []).append(slot)
    return slots


def private_arrays(where: list[Place], image: Contents) -> list[tuple[PrivateSlot, mx.array]]:
    """Return the arrays in the contents of a module, each with its slot."""
    found: list[tuple[PrivateSlot, mx.array]] = []
    for place, (items, attributes) in zip(where, image, strict=True):
        entries = list(attributes.items())
        if isinstance(items, dict):
            entries += items.items()
        elif isinstance(place.node, list):
            entries += enumerate(items)
        for key, value in entries:
            if isinstance(value, mx.array):
                slot = PrivateSlot(place.node, key)
                slot.path = tree.join(place.path, str(key))
                found.append((slot, value))
    return found


def paths_chosen(
    caller: str, module: nn.Module, slots: dict[str, list[Slot]], trainable: str | Sequence[str]
) -> set[str]:
    """Return the first path of each array that a pattern matches, itself or a layer around it.

    Raises:
        ValueError: for a pattern that matches nothing, or an array of integers.
    """
    patterns = (trainable,) if isinstance(trainable, str) else tuple(trainable)
    if not patterns:
        raise checks.error(caller, "trainable must have at least one pattern, got none")
    first = {id(held_at[0].read()): path for path, held_at in slots.items()}
    places = [(path, slot.read()) for path, slot in all_slots("", module)]
    statistics = _never_trained(module)
    found: set[str] = set()
    for text in patterns:
        compiled = compile_pattern(caller, text)
        matched = [(path, array) for path, array in places if any(map(compiled.fullmatch, _above(path)))]
        if not matched:
            names = [path for path, _ in places]
            near = difflib.get_close_matches(text, names, n=4, cutoff=0.0)
            shown = f"the nearest are {', '.join(near)}" if near else f"it has {shown_paths(names)}"
            raise checks.error(caller, f"trainable pattern {text!r} matches none of the arrays; {shown}")
        able = [(path, array) for path, array in matched if id(array) not in statistics]
        if not able:
            raise checks.error(
                caller, f"trainable pattern {text!r} matches only running statistics, as {matched[0][0]}"
            )
        for path, array in able:
            _check_floating(caller, text, path, array)
            found.add(first[id(array)])
    return found


def trained_and_held(
    module: nn.Module, slots: dict[str, list[Slot]], chosen: Collection[str] | None = None
) -> tuple[Params, Tree]:
    """Return the trained arrays and the others, each array only under its first path.

    Trained are the arrays with the chosen paths, or those that the module has not frozen.
    """
    if chosen is None:
        trained = _select(module.trainable_parameters(), slots.__contains__)
    else:
        trained = _pruned(_select(module.parameters(), chosen.__contains__))
    paths = set(tree.paths(trained))
    held = _select(module.parameters(), lambda path: path in slots and path not in paths)
    return trained, _pruned(held)


def check_fits(
    caller: str, name: str, given: Tree, want: dict[str, tuple[int, ...]], *, shapes: bool
) -> dict[str, mx.array]:
    """Return arrays by path; refuse other paths, or shapes if `shapes`, than those of the module."""
    got = dict(tree.items(given))
    if got.keys() == want.keys():
        wrong = [path for path in got if getattr(got[path], "shape", None) != want[path]] if shapes else []
        if not wrong:
            return got
        path = wrong[0]
        if not isinstance(got[path], mx.array):
            raise TypeError(
                f"{caller}: {tree.join(name, path)} must be an mx.array, got {type(got[path]).__name__}"
            )
        raise checks.error(
            caller, f"{tree.join(name, path)} has shape {got[path].shape}, {want[path]} in the module"
        )
    lines = [f"lacks {path}" for path in sorted(want.keys() - got.keys())]
    lines += [f"has {path or 'a bare value'}" for path in sorted(got.keys() - want.keys())]
    raise checks.error(caller, f"{name} does not fit the module: it {', '.join(lines[:10])}")


class Fitting:
    """`check_fits`, which recognizes a tree that is built like the last one that fitted."""

    def __init__(self, caller: str, name: str, want: dict[str, tuple[int, ...]], *, shapes: bool):
        self._check = partial(check_fits, caller, name, want=want, shapes=shapes)
        self._known: tuple[Form, list[str]] | None = None  # one value, so that several threads may check

    def __call__(self, given: Tree) -> dict[str, mx.array]:
        """Return arrays by path."""
        if self._known is not None:
            known, paths = self._known
            if fits(known, given):
                return dict(zip(paths, gathered(known, given), strict=True))
        found = self._check(given=given)
        if all(type(array) is mx.array for array in found.values()):
            known = form(given)
            self._known = known, gathered(known, tree.map_with_path(lambda path, _: path, given))
        return found


def _entries(node: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the entries that `Module.parameters` visits: names that start with `_` are private."""
    if isinstance(node, dict):
        for key, child in node.items():
            if not (isinstance(node, nn.Module) and key.startswith("_")):
                yield tree.key_segment(key), key, child
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield str(index), index, child


def _select(node: Any, keep: Callable[[str], bool], path: str = "") -> Any:
    """Return the arrays whose path `keep` accepts. Containers stay, so list positions stay too."""
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
        raise checks.error(
            "functional", f"{dropped[0]} cannot be removed from its list: tie it by name instead"
        )
    return [
        child if isinstance(child, mx.array) else _select(child, keep, name)
        for name, child in named
        if name not in dropped
    ]


def _pruned(node: Any) -> Any:
    """Return the containers without the dict entries that hold no arrays."""
    if isinstance(node, dict):
        return {key: child for key, child in ((k, _pruned(c)) for k, c in node.items()) if tree.leaves(child)}
    if isinstance(node, list):
        children = [_pruned(child) for child in node]
        return children if tree.leaves(children) else []
    return node


def _check_floating(caller: str, text: str, path: str, array: mx.array) -> None:
    if not mx.issubdtype(array.dtype, mx.floating):
        raise checks.error(
            caller,
            f"trainable must match floating-point arrays, but {path} is {tree.dtype_name(array.dtype)}, as "
            f"quantized weights are (pattern {text!r}); add adapters to its layer with ps.adapters.lora",
        )


def _above(path: str) -> list[str]:
    """Return a path and those of all containers around it."""
    parts = path.split(".")
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]


def _never_trained(module: nn.Module) -> set[int]:
    """Return the `id` of each array that its layer keeps frozen, such as the statistics of BatchNorm."""
    kept: set[int] = set()
    for part in module.modules():
        kind: Any = type(part)
        if kind.unfreeze is not nn.Module.unfreeze:
            twin = kind.__new__(kind)  # the module itself is not changed
            dict.update(twin, part)
            vars(twin).update(vars(part), _no_grad=set(part._no_grad))
            twin.unfreeze(recurse=False)
            kept.update(id(part[name]) for name in twin._no_grad if name in part)
    return kept
