"""Named arrays in safetensors files: snapshots, shards with their index, verified reading."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from purestep import checks, tree
from purestep.checkpoint import atomic, checksum
from purestep.checkpoint.header import CorruptError, verified
from purestep.types import Tree

SUFFIX = ".safetensors"
# Readers of the ecosystem ask for this before they open a file.
ECOSYSTEM = {"format": "mlx"}


class Place(NamedTuple):
    """Where an array is stored: the file's name, the name within it, the checksum of its bytes."""

    file: str
    key: str
    checksum: str


def snapshot(state: Tree) -> dict[str, mx.array]:
    """Return every array by path: evaluated, contiguous, and out of reach of the caller's `x[...] = y`.

    Contiguous arrays, and all that a step returns are, share their memory with the state.
    """
    arrays = {path: mx.contiguous(leaf) for path, leaf in tree.items(state)}
    mx.eval(arrays)
    return arrays


def shards(stem: str, arrays: Mapping[str, mx.array], limit: int | None) -> dict[str, dict[str, mx.array]]:
    """Divide arrays, in their order, among files of at most `limit` bytes, or one array each.

    The names are those of Hugging Face: `stem.safetensors`, or `stem-00001-of-00002.safetensors`.
    """
    groups: list[dict[str, mx.array]] = [{}]
    filled = 0
    for key, array in arrays.items():
        if limit is not None and groups[-1] and filled + array.nbytes > limit:
            groups.append({})
            filled = 0
        groups[-1][key] = array
        filled += array.nbytes
    if len(groups) == 1:
        return {stem + SUFFIX: groups[0]}
    return {
        f"{stem}-{number:05}-of-{len(groups):05}{SUFFIX}": group
        for number, group in enumerate(groups, start=1)
    }


def index(files: Mapping[str, Mapping[str, mx.array]], metadata: Mapping[str, Any]) -> str:
    """Return the text of `stem.safetensors.index.json`, in Hugging Face's convention."""
    size = sum(array.nbytes for arrays in files.values() for array in arrays.values())
    where = {key: name for name, arrays in files.items() for key in arrays}
    return json.dumps({"metadata": {"total_size": size, **metadata}, "weight_map": where}, indent=1) + "\n"


def write(path: Path, arrays: Mapping[str, mx.array], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file and wait until it is on the disk.

    Raises:
        OSError: if it cannot be written whole.
    """
    # MLX appends the suffix to a name that lacks it.
    named = path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
    try:
        mx.save_safetensors(str(named), dict(arrays), {**ECOSYSTEM, **metadata})
    except (RuntimeError, ValueError) as error:
        named.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        size = sum(array.nbytes for array in arrays.values())
        raise OSError(f"cannot write {size} bytes to {path} ({free} bytes are free there): {error}") from None
    if named != path:
        named.replace(path)
    atomic.flush(path)


def metadata(where: str, path: Path) -> dict[str, str]:
    """Return a safetensors file's metadata, once the library has checked the header against the file.

    Raises:
        CorruptError: if it is cut, or no safetensors file.
    """
    try:
        with safe_open(os.fspath(path), framework="mlx") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise CorruptError(f"{where}: {path} is cut or not a safetensors file ({error})") from None


def read(
    where: str,
    directory: Path,
    places: Mapping[str, Place],
    leaves: Mapping[str, tuple[str, tuple[int, ...]]],
    paths: list[str],
) -> dict[str, mx.array]:
    """Return arrays by path, in memory, each with the dtype, shape and checksum that it was stored with.

    Raises:
        CorruptError: for a file that is missing, cut or foreign, or an array that is not as it was written.
    """
    opened: dict[str, dict[str, mx.array]] = {}
    for name in {places[path].file for path in paths}:
        file = directory / name
        if not file.is_file():
            raise CorruptError(f"{where}: {file} is missing")
        held = {place.key for place in places.values() if place.file == name}
        metadata(where, file)
        arrays: Any = mx.load(os.fspath(file), format="safetensors")
        if arrays.keys() != held:
            raise CorruptError(f"{where}: {file} is damaged: its arrays are not those its header names")
        opened[name] = arrays
    found: dict[str, mx.array] = {}
    for path in paths:
        array = opened[places[path].file][places[path].key]
        if (tree.dtype_name(array.dtype), array.shape) != leaves[path]:
            file = directory / places[path].file
            raise CorruptError(f"{where}: {file} is damaged: {path} has another dtype or shape")
        found[path] = array
    try:
        mx.eval(found)  # now: a lazy array would read whatever the file holds later
    except RuntimeError as error:
        raise CorruptError(f"{where}: {directory} cannot be read ({error})") from None
    for path, array in found.items():
        source = f"{path} in {directory / places[path].file}"
        if not verified(where, source, places[path].checksum, checksum.raw(array)):
            raise CorruptError(f"{where}: {source} is damaged: its bytes do not have the checksum written")
    return found


def check_limit(where: str, limit: int | None) -> None:
    """Refuse a `shard_bytes` that is not a positive integer or `None`."""
    if limit is not None:
        checks.integer(where, "shard_bytes", limit, least=1)
