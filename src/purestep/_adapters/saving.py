"""Save the adapters of a module alone, as mlx-lm does."""

import json
import os
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from purestep._adapters.configuration import CONFIGURATION, WEIGHTS, configuration_of, metadata_of
from purestep._adapters.low_rank import Adapter
from purestep._adapters.removing import checked_adapters
from purestep._checkpoint.disk import atomic, device, tensors
from purestep._checkpoint.disk.naming import check_path
from purestep._checkpoint.format.header import kind_of
from purestep._core import checks, tree
from purestep._core.packing import unpacked
from purestep._core.types import Params
from purestep._modules.slots import check_fits, slots_of, trained_and_held


def save(
    directory: str | os.PathLike[str],
    module: nn.Module,
    params: Params | None = None,
    *,
    mlx_lm: bool = True,
) -> None:
    """Write the adapters of a module, and nothing else, to a directory in mlx-lm's layout.

    `adapters.safetensors` holds `lora_a` and `lora_b` of each layer, and `m` for DoRA, under names such as
    `model.layers.0.self_attn.q_proj.lora_a`. `adapter_config.json` holds the rank, the scale, the dropout and
    the names of the layers. `mlx_lm.load(..., adapter_path=directory)` reads both. The first file describes
    itself, and `load` reads it alone. Each file is complete or absent.

    Args:
        directory: the directory; it is created if it does not exist. Files of adapters in it are replaced.
        module: a module with adapters, as `lora` returns.
        params: its trained parameters, as `ps.functional` returns them. `None`: the arrays in the module.
        mlx_lm: write `adapter_config.json`. With `False`, adapters of several ranks, scales or methods can be
            saved, and mlx-lm refuses the directory.

    Raises:
        ValueError: if the module has no adapters; if other arrays than adapters are trained; if `params` does
            not fit the module; if mlx-lm cannot describe the adapters, with the reason.
        TypeError: if `module` is not a module.
        OSError: if a file cannot be written.

    >>> import tempfile
    >>> from purestep import adapters, functional
    >>> model = nn.Sequential(nn.Linear(8, 4))
    >>> adapted = adapters.lora(model, "layers.*", rank=2, alpha=4, key=mx.random.key(0))
    >>> directory = tempfile.mkdtemp()
    >>> save(directory, adapted, functional(adapted)[1])
    >>> sorted(os.listdir(directory))
    ['adapter_config.json', 'adapters.safetensors']
    """
    caller = "adapters.save"
    root = check_path(caller, directory)
    found = checked_adapters(caller, module)
    if kind_of(caller, root) not in ("", "directory"):
        raise NotADirectoryError(f"{caller}: directory must be a directory, got the file {root}")
    arrays = arrays_of(caller, module, found, params)
    text = json.dumps(configuration_of(caller, module, found), indent=4) + "\n" if mlx_lm else None
    _write(caller, root, arrays, metadata_of(found), text)


def arrays_of(
    caller: str, module: nn.Module, found: dict[str, Adapter], params: Params | None
) -> dict[str, mx.array]:
    """Return the arrays of the adapters by name, with those of `params` in place of the module's."""
    trained = tree.items(trained_and_held(module, slots_of(module))[0])
    own = {id(layer[name]) for layer in found.values() for name in layer.trained}
    for path, leaf in trained:
        if id(leaf) not in own:
            raise checks.error(
                caller,
                f"{path} is trained and is not of an adapter: freeze it, or save all with checkpoint.save",
            )
    given = {id(leaf): leaf for _, leaf in trained}
    if params is not None:
        params = unpacked(params)
        check_fits(caller, "params", params, {path: leaf.shape for path, leaf in trained}, shapes=True)
        new = dict(tree.items(params))
        given = {id(leaf): new[path] for path, leaf in trained}
    return {
        tree.join(path, name): given.get(id(layer[name]), layer[name])
        for path, layer in found.items()
        for name in layer.trained
    }


def _write(
    caller: str, root: Path, arrays: dict[str, mx.array], metadata: dict[str, str], text: str | None
) -> None:
    held = tensors.snapshot(list(arrays.values()), caller)
    named = dict(zip(arrays, held.values(), strict=True))
    configuration = root / CONFIGURATION
    try:
        old = configuration.read_text("utf-8") if kind_of(caller, configuration) == "file" else None
        if old is not None and old != text:
            # It must not stand beside the new arrays if the process is killed before it is replaced.
            configuration.unlink()
            atomic.flush(root)
        atomic.write(root / WEIGHTS, lambda temporary: tensors.write(temporary, named, metadata))
        if text is not None and old != text:
            atomic.write_text(configuration, text)
    finally:
        held.clear()
        named.clear()
        device.trim()
