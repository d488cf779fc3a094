"""Load adapters that `save` or mlx-lm wrote."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.nn as nn

from purestep._adapters.adding import sizes
from purestep._adapters.configuration import (
    CONFIGURATION,
    WEIGHTS,
    Settings,
    read_configuration,
    read_metadata,
    settings_of,
)
from purestep._adapters.kinds import LINEAR, Shape, shape_of
from purestep._adapters.low_rank import LORA, Adapter
from purestep._adapters.magnitude import DORA
from purestep._adapters.rebuilding import Module, freeze_all_but_adapters, rebuilt
from purestep._adapters.selecting import adapters_of, layers_of
from purestep._checkpoint.disk import reader
from purestep._checkpoint.disk.naming import check_path
from purestep._checkpoint.format.header import CorruptError, kind_of
from purestep._checkpoint.format.safetensors_header import read_safetensors_header
from purestep._checkpoint.format.specs import Leaves
from purestep._core import checks, tree

_FLOATING = {"float32", "bfloat16", "float16"}


class Stored(NamedTuple):
    """The description of a file of adapters."""

    file: Path
    leaves: Leaves
    layers: dict[str, Settings]


def load(directory: str | os.PathLike[str], module: Module) -> Module:
    """Return a copy of a module with the adapters of a directory, and everything else frozen.

    The directory is one that `save` or mlx-lm wrote. Ranks and names of layers are those of the file; the
    arrays keep their dtype.

    Args:
        directory: the directory.
        module: the module without adapters, or with adapters of the same layers and ranks, whose arrays are
            replaced in the copy. It is left unchanged.

    Returns:
        A new module, as `lora` returns.

    Raises:
        FileNotFoundError: if the directory has no adapters.
        CorruptError: (a ValueError) if a file is damaged.
        ValueError: if the adapters do not fit the module. The message lists every layer that the module
            lacks, and every array that is missing or has another shape.
        TypeError: if `module` is not a module.
        OSError: if the system cannot read a file, which does not mean damage.

    >>> import mlx.core as mx, tempfile
    >>> from purestep import adapters
    >>> model = nn.Sequential(nn.Linear(8, 4))
    >>> directory = tempfile.mkdtemp()
    >>> adapters.save(directory, adapters.lora(model, "layers.*", rank=2, alpha=4, key=mx.random.key(0)))
    >>> adapters.report(load(directory, model)).rows[0].rank
    2
    """
    caller = "adapters.load"
    root = check_path(caller, directory)
    if not isinstance(module, nn.Module):
        raise TypeError(f"{caller}: module must be an mlx.nn.Module, got {type(module).__name__}")
    stored = read_description(caller, root)
    present = adapters_of(module)
    layers: Mapping[str, nn.Module] = present or {
        path: layer for path, layer in layers_of(module).items() if path in stored.layers
    }
    lines = _misfits(stored, layers, present)
    if lines:
        raise checks.error(caller, f"{stored.file} does not fit the module:\n  " + "\n  ".join(lines))
    names = dict.fromkeys(stored.leaves, stored.file.name)
    arrays = reader.unsummed(caller, stored.file.parent, names, stored.leaves, stored.leaves)

    def make(path: str, layer: Any) -> nn.Module:
        base = layer.base if isinstance(layer, Adapter) else layer
        method, scale, dropout = stored.layers[path]
        shape = shape_of(base)
        assert shape is not None
        own = {name: arrays[tree.join(path, name)] for name in _names(method)}
        kind = (LORA if method == "lora" else DORA)[shape.kind]
        new = kind(base, shape, own["lora_a"], own["lora_b"], scale, dropout)
        new.update(own)
        return new

    adapted = rebuilt(caller, module, layers, make)
    freeze_all_but_adapters(adapted)
    return adapted


def read_description(caller: str, root: Path) -> Stored:
    """Read the headers of a directory of adapters.

    Raises:
        ValueError: if the file holds other arrays, or its settings are missing or contradict each other.
    """
    file, configuration = root / WEIGHTS, root / CONFIGURATION
    if kind_of(caller, file) != "file":
        raise FileNotFoundError(f"{caller}: no file at {file}")
    metadata, leaves = read_safetensors_header(caller, file)
    paths: dict[str, set[str]] = {}
    for name, (dtype, _) in leaves.items():
        path, _, leaf = name.rpartition(".")
        if not path or leaf not in DORA[LINEAR].trained:
            raise checks.error(caller, f"{file} holds {name}, which is not an array of an adapter")
        if dtype not in _FLOATING:
            raise checks.error(caller, f"{file} holds {name} in {dtype}, adapters are floating-point")
        paths.setdefault(path, set()).add(leaf)
    layers = read_metadata(caller, file, metadata)
    if layers is not None and layers.keys() != paths.keys():
        raise CorruptError(f"{caller}: {file} is damaged: its metadata describe other layers than it holds")
    if kind_of(caller, configuration) == "file":
        one, rank = read_configuration(caller, configuration)
        layers = layers or dict.fromkeys(paths, one)
        _check_settings(caller, file, leaves, layers, one, rank)
    elif layers is None:
        raise FileNotFoundError(f"{caller}: no file at {configuration}, which has the scale of the adapters")
    return Stored(file, leaves, layers)


def _check_settings(
    caller: str, file: Path, leaves: Leaves, layers: dict[str, Settings], one: Settings, rank: int
) -> None:
    """Refuse a configuration that contradicts the file of the arrays."""
    for path, settings in layers.items():
        if settings != one:
            raise checks.error(
                caller,
                f"{CONFIGURATION} must agree with {file}, got {tuple(one)} and {tuple(settings)} for {path}",
            )
        found = leaves.get(tree.join(path, "lora_a"))
        if found is not None and _rank(found.shape) != rank:
            raise checks.error(
                caller,
                f"{path}.lora_a has shape {tuple(found.shape)} in {file.name}, "
                f"{_with_rank(found.shape, rank)} by the rank in {CONFIGURATION}",
            )


def _misfits(stored: Stored, layers: Mapping[str, nn.Module], present: Mapping[str, Adapter]) -> list[str]:
    """Return one line for each difference between a file and a module."""
    lines = [f"{path} has an adapter, and none in the file" for path in present if path not in stored.layers]
    for path, settings in stored.layers.items():
        layer: Any = layers.get(path)
        base = layer.base if isinstance(layer, Adapter) else layer
        shape = None if base is None else shape_of(base)
        if shape is None:
            what = "is not in the module" if base is None else f"is a {type(base).__name__} in the module"
            lines.append(f"{path} {what if not present else 'has no adapter in the module'}")
            continue
        if isinstance(layer, Adapter) and settings[:2] != settings_of(layer)[:2]:
            lines.append(
                f"{path} is {settings.method} with scale {settings.scale} in the file, "
                f"{layer.method} with scale {layer.scale} in the module"
            )
        wanted = _wanted(base, shape, _rank_of(path, stored.leaves, layer), settings.method)
        lines += _differences(path, stored.leaves, wanted)
        if "m" not in _names(settings.method) and tree.join(path, "m") in stored.leaves:
            lines.append(f"{path}.m is in the file, and its method is lora")
    return lines


def _wanted(base: Any, shape: Shape, rank: int, method: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array of an adapter by name."""
    first, second = sizes(shape, rank)
    wanted = {"lora_a": first, "lora_b": second}
    return wanted if method == "lora" else {**wanted, "m": base["weight"].shape[:-1]}


def _rank_of(path: str, leaves: Leaves, layer: Any) -> int:
    """Return the rank that the arrays must have: that of the module, or else that of `lora_a`."""
    found = leaves.get(tree.join(path, "lora_a"))
    return layer.rank if isinstance(layer, Adapter) else 0 if found is None else _rank(found.shape)


def _rank(shape: tuple[int, ...]) -> int:
    """Return the rank of a `lora_a`; expert layers store it transposed."""
    return {2: shape[-1], 3: shape[-2]}[len(shape)] if len(shape) in (2, 3) else 0


def _with_rank(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return the shape of a `lora_a` with another rank."""
    return (shape[0], rank, *shape[2:]) if len(shape) == 3 else (*shape[:-1], rank)


def _differences(path: str, leaves: Leaves, wanted: dict[str, tuple[int, ...]]) -> list[str]:
    lines = []
    for name, shape in wanted.items():
        found = leaves.get(tree.join(path, name))
        if found is None:
            lines.append(f"{path}.{name} is not in the file")
        elif tuple(found.shape) != tuple(shape):
            lines.append(f"{path}.{name} has shape {tuple(found.shape)} in the file, {shape} in the module")
    return lines


def _names(method: str) -> tuple[str, ...]:
    return (LORA if method == "lora" else DORA)[LINEAR].trained
