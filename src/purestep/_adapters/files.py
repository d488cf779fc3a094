"""Adapters on disk, in mlx-lm's layout: `adapters.safetensors` and `adapter_config.json`."""

import json
import os
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from purestep._adapters.placing import Module, adapters_of, placed
from purestep._checkpoint.disk import atomic
from purestep._checkpoint.files import safetensors
from purestep._core import checks

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
_LEAVES = {"lora_a", "lora_b", "m"}
_LARGEST = 10_000_000  # bytes of a configuration


def save(directory: str | os.PathLike[str], module: nn.Module) -> None:
    """Write the adapters of a module, without the frozen weights.

    `mlx_lm.load(path, adapter_path=directory)` reads them, and so does `adapters.load`. Trained adapters are
    put into the module by `ps.write_back` first.

    Args:
        directory: created if it is missing; its files are replaced.
        module: with adapters of one kind, rank, scale and dropout rate.

    Raises:
        ValueError: if the module has no adapters, or adapters that differ, which the layout cannot express.
        OSError: if a file cannot be written.

    >>> import tempfile, purestep as ps
    >>> with ps.rng.scope(mx.random.key(0)):
    ...     model = nn.Sequential(nn.Linear(8, 8))
    >>> directory = tempfile.mkdtemp()
    >>> save(directory, ps.adapters.lora(model, "layers.0", rank=2, alpha=4, key=mx.random.key(1)))
    >>> sorted(mx.load(directory + "/adapters.safetensors"))
    ['layers.0.lora_a', 'layers.0.lora_b']
    """
    caller = "adapters.save"
    found = adapters_of(module)
    if not found:
        raise checks.error(caller, "module must have adapters, got none")
    settings = {(a.kind, a.lora_b.shape[0], a.scale, a.rate) for a in found.values()}
    if len(settings) > 1:
        shown = "; ".join("{}, rank {}, scale {}, dropout {}".format(*each) for each in sorted(settings))
        raise checks.error(caller, f"adapters must be of one kind, rank, scale and dropout, got {shown}")
    ((kind, rank, scale, rate),) = settings
    config = {
        "fine_tune_type": kind,
        # mlx-lm adapts the last `num_layers` blocks by names within them, and other layers by full names.
        "num_layers": 0,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": rate, "keys": sorted(found)},
    }
    place = Path(directory)
    atomic.make_directory(place)
    safetensors.save(place / WEIGHTS, tree_unflatten(sorted(_arrays(module).items())))
    atomic.write_text(place / CONFIG, json.dumps(config, indent=2) + "\n")


def load(directory: str | os.PathLike[str], module: Module) -> Module:
    """Return a copy of a module with the adapters of a directory; all else is frozen.

    Args:
        directory: written by `adapters.save`, or by mlx-lm with `keys` in its configuration.
        module: the base model, without adapters; left unchanged.

    Raises:
        ValueError: if the adapters belong to another model or have another rank than the configuration says,
            with the first path; if the configuration is not one of LoRA or DoRA.
        FileNotFoundError: if a file is missing.

    >>> import tempfile, purestep as ps
    >>> with ps.rng.scope(mx.random.key(0)):
    ...     model = nn.Sequential(nn.Linear(8, 8))
    >>> directory = tempfile.mkdtemp()
    >>> save(directory, ps.adapters.lora(model, "layers.0", rank=2, alpha=4, key=mx.random.key(1)))
    >>> ps.adapters.report(load(directory, model)).trained
    32
    """
    caller = "adapters.load"
    place = Path(directory)
    kind, rank, scale, rate = _read_config(caller, place / CONFIG)
    arrays: dict[str, mx.array] = dict(mx.load(os.fspath(place / WEIGHTS)))  # type: ignore[arg-type]
    paths = sorted({name.rpartition(".")[0] for name in arrays})
    known = {path for path, _ in module.named_modules()}
    foreign = [path for path in paths if path not in known]
    if foreign or not paths:
        got = f"those of a layer {foreign[0]!r} that module lacks" if foreign else "none"
        raise checks.error(caller, f"{place / WEIGHTS} must hold adapters of this module, got {got}")
    twin = placed(caller, module, paths, kind, (rank, scale, rate), mx.random.key(0))
    wanted = _arrays(twin)
    for name in sorted({*wanted, *arrays}):
        if name not in arrays or name not in wanted:
            raise checks.error(caller, f"{name} is in the {'file' if name in arrays else 'module'} only")
        if arrays[name].shape != wanted[name].shape:
            shapes = f"{arrays[name].shape} in the file, {wanted[name].shape} in the module"
            raise checks.error(caller, f"{name} has shape {shapes}")
    mx.eval(arrays)  # MLX reads the file when an array is used; it may be replaced before
    twin.load_weights(list(arrays.items()), strict=False)
    return twin


def _read_config(caller: str, path: Path) -> tuple[str, int, float, float]:
    if path.stat().st_size > _LARGEST:
        raise checks.error(caller, f"{path} must have at most {_LARGEST} bytes, got {path.stat().st_size}")
    try:
        config = json.loads(path.read_text("utf-8"))
        kind, options = config.get("fine_tune_type", "lora"), config["lora_parameters"]
        rank, scale, rate = options["rank"], options["scale"], options.get("dropout", 0.0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise checks.error(caller, f"{path} must be a configuration of adapters: {error!r:.200}") from None
    if kind not in ("lora", "dora"):
        raise checks.error(caller, f"fine_tune_type in {path} must be lora or dora, got {kind!r:.40}")
    rank = checks.integer(caller, "rank", rank, least=1)
    scale, rate = checks.number(caller, "scale", scale), checks.number(caller, "dropout", rate, least=0)
    return kind, rank, float(scale), float(rate)


def _arrays(module: nn.Module) -> dict[str, mx.array]:
    """Return the arrays of the adapters by name."""
    layers = adapters_of(module).items()
    return {f"{path}.{name}": layer[name] for path, layer in layers for name in _LEAVES if name in layer}
