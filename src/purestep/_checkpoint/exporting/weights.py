"""Write the weights of a whole model as mlx-lm and readers of safetensors expect them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from purestep._checkpoint.disk import atomic, device, tensors
from purestep._checkpoint.disk.naming import check_path
from purestep._checkpoint.disk.whole import check_vacant, write_directory
from purestep._checkpoint.exporting import companions
from purestep._checkpoint.exporting.arrays import named_arrays
from purestep._checkpoint.exporting.configuration import (
    CONFIGURATION,
    Dataclass,
    as_mapping,
    read_config,
    text_of,
)
from purestep._checkpoint.files.safetensors import check_free
from purestep._checkpoint.format.header import kind_of, naming
from purestep._checkpoint.format.names import SUFFIX, index_of
from purestep._core import checks
from purestep._core.types import Params, Tree

_LIMIT = 5_000_000_000  # bytes of a file, as on Hugging Face


def save_weights(
    path: str | os.PathLike[str],
    model: nn.Module | Params,
    params: Params | None = None,
    model_state: Tree | None = None,
    *,
    config: Mapping[str, Any] | Dataclass | None = None,
    base: str | os.PathLike[str] | None = None,
    shard_bytes: int | None = _LIMIT,
) -> None:
    """Write the weights of a whole model to a directory that mlx-lm and Hugging Face readers load.

    The directory has `model.safetensors`, or `model-00001-of-00003.safetensors` and so on, with
    `model.safetensors.index.json`. Each array keeps its dtype and has the name that the module gives it, such
    as `model.layers.0.self_attn.q_proj.weight`. With `config` or `base` the directory also has the
    `config.json` that `mlx_lm.load` needs. The directory is complete or absent.

    - An array in several places of a module (tied weights) is written once, under its first name.
    - Quantized layers are written as they are. Their group size, bits and mode are written to `config.json`
      as `quantization` and `quantization_config`. For a module these entries always describe its layers; a
      module whose arrays are all floating-point has neither.
    - Merge adapters first: `ps.adapters.merge`.

    Args:
        path: the directory, which must not exist or be empty; missing parent directories are created. A path
            that ends in `.safetensors` is one file, which replaces an existing one.
        model: the module; it is left unchanged. Or the parameters alone, as a tree of arrays.
        params: trained parameters of the module, as `ps.functional` returns them, which are written in place
            of the module's own. Arrays that they lack, such as frozen ones, are those of the module.
        model_state: the state of the module, as `ps.functional` returns it, written in the same way.
        config: the content of `config.json`: a mapping, or a dataclass such as `model.args` of mlx-lm.
        base: a directory of the model that was trained. The files of its tokenizer, its
            `generation_config.json`, chat templates and `*.py` are copied, and its `config.json` unless
            `config` is given.
        shard_bytes: the largest size of a file; a larger array has its own. `None`: one file.

    Raises:
        TypeError: for a leaf that is not an array, with its path; for another type of `model` or `config`.
        ValueError: for a module with adapters; if `params` or `model_state` do not fit the module, with
            every difference; for an array that no such file can hold, such as float64; for two arrays of one
            name; for a value of `config` that JSON does not have; for `config`, `base` or `shard_bytes` with
            a path of one file.
        FileExistsError: if the directory is not empty; if the file is part of a state that an index names.
        FileNotFoundError: if `base` has no `config.json` and `config` is not given.
        NotADirectoryError: if `path` is another file, or `base` is not a directory.
        OSError: if a file cannot be written. Nothing is left, unless the message says that all is written
            and only the flush of the directory failed.

    >>> import tempfile
    >>> from purestep.checkpoint import load_weights
    >>> model, directory = nn.Linear(2, 1), tempfile.mkdtemp()
    >>> save_weights(directory, model, {"weight": mx.ones((1, 2))}, config={"model_type": "linear"})
    >>> sorted(os.listdir(directory))
    ['config.json', 'model.safetensors', 'model.safetensors.index.json']
    >>> load_weights(directory, like=model).weight
    array([[1, 1]], dtype=float32)
    """
    caller = "checkpoint.save_weights"
    target = check_path(caller, path)
    limit = tensors.check_limit(caller, shard_bytes)
    named = named_arrays(caller, model, params, model_state)
    if target.name.endswith(SUFFIX):
        _check_file(caller, target, {"config": config, "base": base}, limit)
        atomic.write(target, lambda temporary: _put_arrays(temporary, named))
        return
    root = check_path(caller, target.resolve())
    check_vacant(caller, root)
    text, copied = _beside(caller, model, config, base)

    def fill(directory: Path) -> None:
        files = tensors.shards("model", named, limit)
        for name, held in files.items():
            _put_arrays(directory / name, held)
        _put_text(directory / index_of("model"), tensors.index(files, {}))
        companions.copy(copied, directory)
        if text is not None:
            _put_text(directory / CONFIGURATION, text)

    write_directory(root, fill)


def _check_file(caller: str, path: Path, absent: dict[str, Any], limit: int | None) -> None:
    for name, given in absent.items():
        if given is not None:
            raise checks.error(caller, f"{name} must be None for one file, got the path {path.name!r}")
    if limit not in (None, _LIMIT):
        raise checks.error(caller, f"shard_bytes must be left out for one file, got the path {path.name!r}")
    if kind_of(caller, path) == "directory":
        raise IsADirectoryError(f"{caller}: path must be a file, got the directory {path}")
    check_free(caller, path)


def _beside(
    caller: str, model: Any, config: Any, base: str | os.PathLike[str] | None
) -> tuple[str | None, list[Path]]:
    """Return the text of config.json and the files to copy."""
    module = model if isinstance(model, nn.Module) else None
    held = None if config is None else as_mapping(caller, config)
    copied: list[Path] = []
    if base is not None:
        source = check_path(caller, base)
        copied = companions.companions(caller, source)
        if held is None:
            if kind_of(caller, source / CONFIGURATION) != "file":
                raise FileNotFoundError(f"{caller}: base must have {CONFIGURATION}, or give config: {source}")
            held = read_config(caller, source / CONFIGURATION)
    return None if held is None else text_of(caller, held, module), copied


def _put_text(path: Path, text: str) -> None:
    with naming(path):
        path.write_text(text, encoding="utf-8")
    atomic.flush(path)


def _put_arrays(path: Path, arrays: dict[str, mx.array]) -> None:
    owned = tensors.evaluated(arrays)  # of one file at a time: on CUDA these are copies
    try:
        tensors.write(path, owned, {})
    finally:
        owned.clear()
        device.trim()
