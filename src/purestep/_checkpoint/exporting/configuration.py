"""The text of config.json, with the quantization of a module's layers as mlx-lm reads it."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import mlx.core as mx
import mlx.nn as nn

from purestep._checkpoint.format.header import CorruptError, read_text
from purestep._core import checks, tree

CONFIGURATION = "config.json"
QUANTIZATION = ("quantization", "quantization_config")
# Group size and bits that MLX takes for `None`.
_DEFAULTS = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}


class Dataclass(Protocol):
    """An instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def text_of(caller: str, config: Mapping[str, Any], module: nn.Module | None) -> str:
    """Return the text of config.json; the entries for quantization are those of the module, if one is given.

    Raises:
        ValueError: for a value that JSON does not have, with its key.
    """
    held = dict(config) if module is None else _with_quantization(config, module)
    for key, value in held.items():
        if not isinstance(key, str):
            raise TypeError(f"{caller}: config must have strings for keys, got {key!r}")
        try:
            json.dumps(_tagged(value), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise checks.error(caller, f"config must have JSON values, got {error} in {key!r}") from None
    return json.dumps(_tagged(held), indent=4, sort_keys=True) + "\n"


def read_config(caller: str, path: Path) -> dict[str, Any]:
    """Read a config.json.

    Raises:
        CorruptError: if it is no JSON object.
    """
    text = read_text(caller, path)
    try:
        held = json.loads(text)
    except (ValueError, RecursionError):
        held = None
    if not isinstance(held, dict):
        raise CorruptError(f"{caller}: {path} is damaged: it is no JSON object")
    return held


def as_mapping(caller: str, config: Any) -> Mapping[str, Any]:
    """Return a configuration as a mapping: a mapping, or a dataclass such as `model.args` of mlx-lm."""
    if isinstance(config, Mapping):
        return config
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.asdict(config)
    raise TypeError(
        f"{caller}: config must be a mapping or a dataclass, such as model.args, got {type(config).__name__}"
    )


def quantization_of(module: nn.Module) -> dict[str, Any]:
    """Return the entry `quantization`: the settings of most quantized layers, then of each other one by path.

    The entry of a module without such layers is empty.

    >>> module = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    >>> nn.quantize(module, group_size=32, bits=8, class_predicate=lambda path, _: path == "layers.1")
    >>> quantization_of(module)
    {'group_size': 32, 'bits': 8, 'mode': 'affine'}
    """
    layers = {path: _settings(part) for path, part in module.named_modules() if _is_quantized(part)}
    if not layers:
        return {}
    [(common, _)] = Counter(settings[:3] for settings in layers.values()).most_common(1)
    entry: dict[str, Any] = _named(common)
    for path in sorted(layers):
        if layers[path] != (*common, False):
            entry[path] = _named(layers[path])
    return entry


def _with_quantization(config: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    entry = quantization_of(module)
    kept = {key: value for key, value in config.items() if key not in QUANTIZATION}
    if entry:
        return {**kept, **dict.fromkeys(QUANTIZATION, entry)}
    # Integers may be weights that another scheme packed, such as those of BitNet: its entry stays.
    floating = all(mx.issubdtype(a.dtype, mx.floating) for a in tree.leaves(module.parameters()))
    return kept if floating else dict(config)


def _is_quantized(layer: Any) -> bool:
    return "scales" in layer and hasattr(layer, "bits") and hasattr(layer, "group_size")


def _settings(layer: Any) -> tuple[int, int, str, bool]:
    mode = getattr(layer, "mode", "affine")
    group_size, bits = _DEFAULTS.get(mode, (64, 4))
    scaled = layer.get("global_scale") is not None
    return layer.group_size or group_size, layer.bits or bits, mode, scaled


def _named(settings: tuple[Any, ...]) -> dict[str, Any]:
    entry: dict[str, Any] = dict(zip(("group_size", "bits", "mode"), settings[:3], strict=True))
    return {**entry, "global_scale": True} if settings[3:] == (True,) else entry


def _tagged(value: Any) -> Any:
    """Return a value with its infinities and NaNs in the form of transformers, since JSON has none."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, Mapping):
        return {key: _tagged(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_tagged(child) for child in value]
    return value
