"""The arrays of a module that path patterns choose to train."""

import difflib
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from purestep._core import checks
from purestep._core.tree.patterns import compile_pattern, shown_paths
from purestep._modules.slots import Slot, all_slots


def chosen(
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
            raise checks.error(caller, f"trainable pattern {text!r} matches no array of the module; {shown}")
        able = [(path, array) for path, array in matched if id(array) not in statistics]
        if not able:
            raise checks.error(
                caller, f"trainable pattern {text!r} matches only running statistics, as {matched[0][0]}"
            )
        for path, array in able:
            _check_floating(caller, text, path, array)
            found.add(first[id(array)])
    return found


def _check_floating(caller: str, text: str, path: str, array: mx.array) -> None:
    if not mx.issubdtype(array.dtype, mx.floating):
        raise checks.error(
            caller,
            f"trainable pattern {text!r} matches {path}, an array of {array.dtype}: a quantized weight "
            "cannot be trained; add adapters to its layer with ps.adapters.lora",
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
