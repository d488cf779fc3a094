"""Open checkpoints, safetensors files of any program, and files of `to_bytes`, without reading the arrays."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path

import mlx.core as mx

from purestep._checkpoint.disk import reader
from purestep._checkpoint.disk.index import read_index
from purestep._checkpoint.files.msgpack import from_bytes, is_packed
from purestep._checkpoint.files.sealed import header_in_file, header_in_index, stored_tree
from purestep._checkpoint.format.header import CorruptError, problem, reading
from purestep._checkpoint.format.names import INDEX, KEY
from purestep._checkpoint.format.safetensors_header import read_safetensors_header
from purestep._checkpoint.inspecting.arrays import StoredArrays
from purestep._checkpoint.run import directory
from purestep._core import tree


def open_arrays(caller: str, path: Path) -> StoredArrays:
    """Open a path without reading its arrays. Only a file of `to_bytes` is read as a whole.

    Raises:
        CorruptError: if the file is damaged or of an unknown format.
        ValueError: if another version of purestep wrote it.
        FileNotFoundError: if the path does not exist.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{caller}: path must exist, {path} does not")
    if path.is_dir():
        return _checkpoint(caller, path)
    if path.name.endswith(INDEX):
        return _divided(caller, path)
    if is_packed(path):
        return _packed(caller, path)
    return _whole(caller, path)


def file_problems(caller: str, manifest: directory.Manifest) -> list[str]:
    """Check the size and the header of each file of a checkpoint; return what is wrong."""
    problems = []
    for name in manifest.files:
        try:
            manifest.check_file(caller, name)
        except CorruptError as error:
            problems.append(problem(caller, error))
    return problems


def _checkpoint(caller: str, path: Path) -> StoredArrays:
    manifest = directory.read(caller, path)

    def read(paths: list[str]) -> dict[str, mx.array]:
        # Without the checks of whole files: an array may be sound in a damaged file.
        return manifest.read(caller, paths)

    kind = "replay bundle" if "replay" in manifest.record.metadata else "checkpoint"
    problems = tuple(file_problems(caller, manifest))
    return StoredArrays(path, kind, manifest.leaves, read, True, manifest.record, problems)


def _whole(caller: str, path: Path) -> StoredArrays:
    content = header_in_file(caller, path)
    if content is None:
        leaves = read_safetensors_header(caller, path).leaves
        return _foreign(caller, path, "safetensors, not purestep's", dict.fromkeys(leaves, path.name), ())
    stored = stored_tree(caller, path, content, None)
    return StoredArrays(path, "safetensors", stored.leaves, stored.read, True)


def _divided(caller: str, path: Path) -> StoredArrays:
    # A file that is missing or damaged is a problem of its own arrays only.
    index = read_index(caller, path, KEY, lenient=True)
    content = header_in_index(caller, path, index, lenient=True)
    held, count = dict(index.placed()), len(index.files)
    shards = f"{count} file" + ("" if count == 1 else "s")
    if content is None:
        return _foreign(caller, path, f"safetensors in {shards}, not purestep's", held, index.files)
    stored = stored_tree(caller, path, content, held)
    kind = f"safetensors in {shards}"
    return StoredArrays(path, kind, stored.leaves, stored.read, True, files=frozenset(index.files))


def _foreign(
    caller: str, path: Path, kind: str, held: Mapping[str, str], shards: Collection[str]
) -> StoredArrays:
    """Return the arrays of files of another program, by key; `held` has the file of each."""
    leaves = {}
    problems = []
    for name in dict.fromkeys(held.values()):
        try:
            read_safetensors_header(caller, path.parent / name)  # checks it against the file's length
            found = reader.lazy(caller, path.parent / name)
        except CorruptError as error:
            if not shards:
                raise
            problems.append(problem(caller, error))
            continue
        for key, array in found.items():
            if held.get(key) == name:
                leaves[key] = tree.ArraySpec(tree.dtype_name(array.dtype), array.shape)
    problems += [
        f"{key} is not in {name}, where the index says" for key, name in held.items() if key not in leaves
    ]

    def read(paths: list[str]) -> dict[str, mx.array]:
        return reader.unsummed(caller, path.parent, held, leaves, paths)

    return StoredArrays(path, kind, leaves, read, False, None, tuple(problems), frozenset(shards))


def _packed(caller: str, path: Path) -> StoredArrays:
    with reading(caller, path):
        data = path.read_bytes()
    try:
        arrays = dict(tree.items(from_bytes(data)))
    except ValueError as error:
        said = problem("checkpoint.from_bytes", error)
        raise CorruptError(f"{caller}: {path}: {said}") from None
    leaves = {
        name: tree.ArraySpec(tree.dtype_name(array.dtype), array.shape) for name, array in arrays.items()
    }
    return StoredArrays(path, "msgpack", leaves, lambda paths: {name: arrays[name] for name in paths}, True)
