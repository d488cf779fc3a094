"""One view of all arrays on disk: checkpoints, safetensors files of any writer, and msgpack."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.disk import reader
from purestep._checkpoint.disk.naming import check_file_names
from purestep._checkpoint.files.msgpack import from_bytes
from purestep._checkpoint.files.safetensors import stored_tree
from purestep._checkpoint.format import names
from purestep._checkpoint.format.header import CorruptError, reading, sealed, unseal
from purestep._checkpoint.format.safetensors_header import read_safetensors_header
from purestep._checkpoint.format.specs import Leaves, nbytes
from purestep._checkpoint.run import directory
from purestep._checkpoint.run.record import Record
from purestep._core import tree

# Bytes of arrays that are read together. Each read parses the header of the file again.
_TOGETHER = 64 << 20


class Source(NamedTuple):
    """Arrays on disk.

    Attributes:
        path: the path of the file or directory.
        kind: the kind of storage, in words.
        leaves: dtypes and shapes by path.
        read: returns the arrays of a list of paths, in memory; raises `CorruptError`.
        summed: whether `read` verifies a checksum of every array.
        record: the record of a checkpoint.
        problems: errors found outside of the arrays.
        files: the names of the files that an index names.
    """

    path: Path
    kind: str
    leaves: Leaves
    read: Callable[[list[str]], dict[str, mx.array]]
    summed: bool
    record: Record | None = None
    problems: tuple[str, ...] = ()
    files: frozenset[str] = frozenset()


def open_source(caller: str, path: Path) -> Source:
    """Open a path without reading its arrays.

    Raises:
        CorruptError: if the file is damaged or of an unknown format.
        ValueError: if another version of purestep wrote it.
        FileNotFoundError: if the path does not exist.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{caller}: there is nothing at {path}")
    if path.is_dir():
        source = _checkpoint(caller, path)
    elif path.name.endswith(names.INDEX):
        source = _divided(caller, path)
    elif b"\xa8purestep" in _start(path):
        source = _packed(caller, path)
    else:
        source = _safetensors(caller, path)
    return source


def read_all(caller: str, source: Source, paths: list[str]) -> Iterator[tuple[str, mx.array | None, str]]:
    """Yield each path with its array, or with `None` and the error. Few arrays are in memory at a time.

    Raises:
        OSError: if the system cannot read the file; the file may be sound.
    """
    for group in _groups(source.leaves, paths):
        try:
            found: dict[str, Any] = source.read(group)
            problems = {}
        except CorruptError:
            found, problems = _one_by_one(caller, source, group)
        for path in group:
            yield path, found.get(path), problems.get(path, "")


def problem_of(caller: str, error: Exception) -> str:
    """Return the text of an error without its caller."""
    return str(error).removeprefix(f"{caller}: ")


def file_problems(caller: str, manifest: directory.Manifest) -> list[str]:
    """Check the size and the header of each file of a checkpoint; return what is wrong."""
    problems = []
    for name in manifest.files:
        try:
            manifest.check_file(caller, name)
        except CorruptError as error:
            problems.append(problem_of(caller, error))
    return problems


def _one_by_one(caller: str, source: Source, paths: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    found: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for path in paths:
        try:
            found |= source.read([path])
        except CorruptError as error:
            problems[path] = problem_of(caller, error)
    return found, problems


def _groups(leaves: Leaves, paths: list[str]) -> Iterator[list[str]]:
    group: list[str] = []
    filled = 0
    for path in paths:
        size = nbytes(*leaves[path])
        if group and filled + size > _TOGETHER:
            yield group
            group, filled = [], 0
        group.append(path)
        filled += size
    if group:
        yield group


def _checkpoint(caller: str, path: Path) -> Source:
    manifest = directory.read(caller, path)

    def read(paths: list[str]) -> dict[str, mx.array]:
        # Without the checks of whole files: an array may be sound in a damaged file.
        return reader.read(caller, path, manifest.places, manifest.leaves, paths)

    kind = "replay bundle" if "replay" in manifest.record.metadata else "checkpoint"
    return Source(
        path, kind, manifest.leaves, read, True, manifest.record, tuple(file_problems(caller, manifest))
    )


def _safetensors(caller: str, path: Path) -> Source:
    metadata = read_safetensors_header(caller, path).metadata
    header = metadata.pop(names.KEY, None)
    if header is None:
        _check_foreign(caller, path, json.dumps(metadata))
        held = {path.name: None}
        return _foreign(caller, path, "safetensors, not purestep's", held)
    if metadata != names.ECOSYSTEM:
        raise CorruptError(f"{caller}: {path} is damaged: its metadata is not what was written")
    stored = stored_tree(caller, path, unseal(caller, str(path), header), None)
    return Source(path, "safetensors", dict(tree.spec_items(stored.tree)), stored.read, True)


def _divided(caller: str, path: Path) -> Source:
    with reading(caller, path):
        data = path.read_bytes()
    try:
        text = data.decode()
        index = json.loads(text)
        held = {str(key): str(name) for key, name in index["weight_map"].items()}
        metadata = dict(index.get("metadata") or {})
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise CorruptError(f"{caller}: {path} is damaged: it is not an index of safetensors files") from None
    check_file_names(caller, path, held.values())
    count = len(set(held.values()))
    shards = f"{count} file" + ("" if count == 1 else "s")
    header = metadata.get(names.KEY)
    if header is None:
        _check_foreign(caller, path, text)
        return _foreign(caller, path, f"safetensors in {shards}, not purestep's", held)
    stored = stored_tree(caller, path, unseal(caller, str(path), header), held)
    leaves = dict(tree.spec_items(stored.tree))
    if metadata.get("total_size") != sum(nbytes(*leaf) for leaf in leaves.values()):
        raise CorruptError(f"{caller}: {path} is damaged: total_size is not that of its arrays")
    return Source(path, f"safetensors in {shards}", leaves, stored.read, True, files=frozenset(held.values()))


def _check_foreign(caller: str, path: Path, text: str) -> None:
    """Raise `CorruptError` for a file of purestep in which the name of the header is damaged."""
    if sealed(text):
        raise CorruptError(f"{caller}: {path} is damaged: its header has another name")


def _foreign(caller: str, path: Path, kind: str, held: dict[str, Any]) -> Source:
    """Return the source of files without purestep's header: one file, or the files of an index by key."""
    divided = None not in held.values()
    leaves: dict[str, tuple[str, tuple[int, ...]]] = {}
    files: dict[str, str] = {}
    problems = []
    for name in dict.fromkeys(held.values() if divided else held):
        try:
            for key, array in _lazy(caller, path.parent / name).items():
                if divided and held.get(key) != name:
                    continue
                leaves[key] = (tree.dtype_name(array.dtype), array.shape)
                files[key] = name
        except CorruptError as error:
            if not divided:
                raise
            problems.append(problem_of(caller, error))
    if divided:
        lost = [key for key, name in held.items() if key not in files]
        problems += [f"{key} is not in {held[key]}, where the index says" for key in lost]

    def read(paths: list[str]) -> dict[str, mx.array]:
        found: dict[str, mx.array] = {}
        for name in {files[key] for key in paths}:
            arrays = _lazy(caller, path.parent / name)
            found |= {key: arrays[key] for key in paths if files[key] == name and key in arrays}
        try:
            mx.eval(found)
        except RuntimeError as error:
            raise CorruptError(f"{caller}: {path} cannot be read ({error})") from None
        return found

    return Source(
        path, kind, leaves, read, False, None, tuple(problems), frozenset(held.values() if divided else ())
    )


def _lazy(caller: str, path: Path) -> dict[str, mx.array]:
    read_safetensors_header(caller, path)  # checks the header against the file's length
    return reader.lazy(caller, path)


def _packed(caller: str, path: Path) -> Source:
    """Return the source of a file of `to_bytes`. It is read as a whole."""
    try:
        arrays = dict(tree.items(from_bytes(path.read_bytes())))
    except ValueError as error:
        said = str(error).removeprefix("checkpoint.from_bytes: ")
        raise CorruptError(f"{caller}: {path}: {said}") from None
    leaves = {name: (tree.dtype_name(array.dtype), array.shape) for name, array in arrays.items()}
    return Source(path, "msgpack", leaves, lambda paths: {name: arrays[name] for name in paths}, True)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)
