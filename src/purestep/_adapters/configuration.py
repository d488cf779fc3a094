"""What a file of adapters says about its layers: in its own metadata, and in mlx-lm's configuration."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.nn as nn

from purestep._adapters.kinds import EMBEDDING, EXPERTS, is_quantized
from purestep._adapters.low_rank import Adapter
from purestep._checkpoint.format.header import CorruptError, read_text
from purestep._core import checks

WEIGHTS, CONFIGURATION = "adapters.safetensors", "adapter_config.json"
METADATA = "purestep.adapters"
METHODS = ("lora", "dora")


class Settings(NamedTuple):
    """What the arrays of an adapter do not say."""

    method: str
    scale: float
    dropout: float


def settings_of(layer: Adapter) -> Settings:
    """Return the settings of an adapter."""
    return Settings(layer.method, layer.scale, layer.rate)


def metadata_of(found: Mapping[str, Adapter]) -> dict[str, str]:
    """Return the metadata of a file of adapters: the settings of each layer."""
    return {METADATA: json.dumps({path: settings_of(layer) for path, layer in found.items()})}


def read_metadata(caller: str, path: Path, metadata: Mapping[str, str]) -> dict[str, Settings] | None:
    """Return the settings of each layer, or `None` if the file has none.

    Raises:
        CorruptError: if they have another form.
    """
    if METADATA not in metadata:
        return None
    try:
        held = json.loads(metadata[METADATA])
        return {name: _settings(caller, f"{path} for {name}", *values) for name, values in held.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptError(
            f"{caller}: {path} is damaged: its metadata describe no adapters ({error})"
        ) from None


def read_configuration(caller: str, path: Path) -> tuple[Settings, int]:
    """Return the settings and the rank in a file of mlx-lm's form.

    Raises:
        ValueError: if it has another form, or describes full weights.
    """
    text = read_text(caller, path)
    try:
        held = json.loads(text)
        method = held.get("fine_tune_type", "lora")
        parameters = held.get("lora_parameters", {})
        scale, rank = parameters.get("scale"), parameters.get("rank")
        dropout = parameters.get("dropout", 0.0)
    except (ValueError, AttributeError, RecursionError):
        raise CorruptError(f"{caller}: {path} is damaged: it is no configuration of adapters") from None
    if method == "full":
        raise checks.error(
            caller,
            f"fine_tune_type in {path} must be lora or dora, got 'full'; load the weights with load_weights",
        )
    rank = checks.integer(caller, f"rank in {path}", rank, least=1)
    return _settings(caller, str(path), method, scale, dropout), rank


def configuration_of(caller: str, module: nn.Module, found: Mapping[str, Adapter]) -> dict[str, Any]:
    """Return the configuration with which mlx-lm adds the same adapters.

    Raises:
        ValueError: if mlx-lm has no words for them.
    """
    first = next(iter(found))
    for path, layer in found.items():
        for name, value, other in (
            ("method", layer.method, found[first].method),
            ("rank", layer.rank, found[first].rank),
            ("scale", layer.scale, found[first].scale),
            ("dropout", layer.rate, found[first].rate),
        ):
            if value != other:
                _refuse(
                    caller,
                    f"{first} has {name} {other}, {path} has {name} {value}, and mlx-lm has one for all",
                )
        if layer.method == "dora":
            _check_dora(caller, path, layer)
    num_layers, keys = _layers_and_keys(caller, module, found)
    layer = found[first]
    return {
        "fine_tune_type": layer.method,
        "num_layers": num_layers,
        "lora_parameters": {
            "rank": layer.rank,
            "scale": layer.scale,
            "dropout": layer.rate,
            "keys": keys,
        },
    }


def _check_dora(caller: str, path: str, layer: Adapter) -> None:
    if layer.kind == EXPERTS:
        _refuse(caller, f"{path} is a layer of experts, for which mlx-lm has no DoRA")
    if is_quantized(layer.base) and layer.kind == EMBEDDING:
        _refuse(caller, f"{path} is a quantized embedding, for which mlx-lm has no DoRA")
    if is_quantized(layer.base) and 32 % (layer.base.bits or 4):
        _refuse(caller, f"{path} has {layer.base.bits} bits, for which mlx-lm has no DoRA")


def _layers_and_keys(caller: str, module: nn.Module, found: Mapping[str, Adapter]) -> tuple[int, list[str]]:
    """Return the number of last blocks and the names of layers with which mlx-lm finds exactly these."""
    held = getattr(module, "layers", None)
    blocks = [block for block in held if isinstance(block, nn.Module)] if isinstance(held, list) else []
    wanted = {id(layer) for layer in found.values()}
    inside = [[(name, id(part)) for name, part in block.named_modules()] for block in blocks]
    places = [(at, name) for at, names in enumerate(inside) for name, part in names if part in wanted]
    everywhere = [(name, id(part)) for name, part in module.named_modules()]
    # Names within the last blocks, as mlx-lm writes them, or else names from the root.
    choices = [(len(blocks), list(found))]
    if places:
        number = len(blocks) - min(at for at, _ in places)
        choices.insert(0, (number, sorted({name for _, name in places})))
    for number, keys in choices:
        reached = _named(keys, *inside[len(blocks) - number :], everywhere)
        if reached == wanted:
            return number, keys
    return _refuse(caller, "the names of these layers also stand for others in mlx-lm's layout")


def _named(keys: Iterable[str], *groups: list[tuple[str, int]]) -> set[int]:
    chosen = set(keys)
    return {part for group in groups for name, part in group if name in chosen}


def _refuse(caller: str, reason: str) -> Any:
    raise checks.error(caller, f"mlx_lm must be False for these adapters: {reason}")


def _settings(caller: str, name: str, method: Any, scale: Any, dropout: Any) -> Settings:
    checks.one_of(caller, f"fine_tune_type in {name}", method, METHODS)
    scale = checks.number(caller, f"scale in {name}", scale)
    dropout = checks.number(caller, f"dropout in {name}", dropout, least=0, below=1)
    return Settings(method, float(scale), float(dropout))
