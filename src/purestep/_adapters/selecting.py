"""The layers of a module that path patterns select."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from purestep._adapters.kinds import Shape, shape_of
from purestep._adapters.low_rank import Adapter
from purestep._core import checks, tree
from purestep._core.tree.patterns import compile_pattern, shown_paths


def layers_of(module: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that hold arrays of their own, by their first path, in the module's order."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for path, node in _modules("", module):
        if id(node) not in seen and any(isinstance(child, mx.array) for _, child in _public(node)):
            found[path] = node
        seen.add(id(node))
    return found


def adapters_of(module: nn.Module) -> dict[str, Adapter]:
    """Return the adapters in a module by path, in the module's order."""
    return {path: layer for path, layer in layers_of(module).items() if isinstance(layer, Adapter)}


def patterns_of(caller: str, patterns: str | Sequence[str]) -> tuple[str, ...]:
    """Return one or several patterns as a tuple."""
    given = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if not given:
        raise checks.error(caller, "patterns must hold at least one pattern, got none")
    return given


def selected(
    caller: str, module: nn.Module, patterns: str | Sequence[str]
) -> dict[str, tuple[nn.Module, Shape]]:
    """Return the layers whose paths match a pattern, each with its shape.

    Raises:
        ValueError: for a pattern that matches no layer, or a layer that cannot be adapted.
    """
    layers = {path: layer for path, layer in layers_of(module).items() if path}
    chosen: set[str] = set()
    for text in patterns_of(caller, patterns):
        compiled = compile_pattern(caller, text)
        matched = [path for path in layers if compiled.fullmatch(path)]
        if not matched:
            raise checks.error(
                caller, f"pattern {text!r} matches none of the layers; {nearest(layers, text)}"
            )
        for path in matched:
            _check_adaptable(caller, text, path, layers)
        chosen.update(matched)
    return {path: (layer, _shape(layer)) for path, layer in layers.items() if path in chosen}


def nearest(layers: dict[str, nn.Module], text: str) -> str:
    """Return the paths of layers that are most like a pattern, in words."""
    able = [path for path, layer in layers.items() if shape_of(layer) is not None]
    close = difflib.get_close_matches(text, able, n=4, cutoff=0.0)
    return f"the nearest are {', '.join(close)}" if close else f"it has {shown_paths(list(layers))}"


def _check_adaptable(caller: str, text: str, path: str, layers: dict[str, nn.Module]) -> None:
    layer = layers[path]
    above = [path.rsplit(".", depth)[0] for depth in range(path.count(".") + 1)]
    for name in above:
        if name in layers and (isinstance(layers[name], Adapter) or "lora_a" in layers[name]):
            raise checks.error(caller, f"{name} already has an adapter, and pattern {text!r} matches {path}")
    if shape_of(layer) is None:
        raise checks.error(
            caller,
            f"{path} must be a linear, embedding or expert layer, got {type(layer).__name__} "
            f"(pattern {text!r})",
        )


def _shape(layer: nn.Module) -> Shape:
    shape = shape_of(layer)
    assert shape is not None
    return shape


def _modules(path: str, node: Any) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(node, nn.Module):
        yield path, node
    for segment, child in _public(node):
        if isinstance(child, (dict, list)):
            yield from _modules(tree.join(path, segment), child)


def _public(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield the entries that `Module.parameters` visits."""
    if isinstance(node, dict):
        for key, child in node.items():
            if not (isinstance(node, nn.Module) and key.startswith("_")):
                yield str(key), child
    elif isinstance(node, list):
        yield from ((str(index), child) for index, child in enumerate(node))
