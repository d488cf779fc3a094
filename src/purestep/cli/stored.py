"""Whatever holds arrays on disk, seen one way: a checkpoint, safetensors of anyone's, msgpack."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.disk import reader, tensors
from purestep._checkpoint.files.msgpack import from_bytes
from purestep._checkpoint.files.safetensors import stored_tree
from purestep._checkpoint.format.contents import contents
from purestep._checkpoint.format.header import CorruptError, reading, sealed, unseal
from purestep._checkpoint.format.specs import Leaves, nbytes
from purestep._checkpoint.run import directory
from purestep._checkpoint.run.record import Record
from purestep._core import tree

# Arrays are read together up to this many bytes: one by one, each would parse its file's header again.
_TOGETHER = 64 << 20
_KEY = "purestep"
INDEX = ".index.json"


class Source(NamedTuple):
    """Arrays on disk.

    Attributes:
        path: where they are.
        kind: in words.
        leaves: dtype and shape by path.
        read: from paths to arrays, in memory; raises `CorruptError`.
        summed: whether reading verifies a checksum of every array.
        record: of a checkpoint.
        problems: what is wrong besides the arrays.
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


def open_source(where: str, path: Path) -> Source:
    """Look at what a path holds, and read none of its arrays yet.

    Raises:
        CorruptError: if it is damaged, or nothing that can be read.
        ValueError: if another version of purestep wrote it.
        FileNotFoundError: if there is nothing.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{where}: there is nothing at {path}")
    if path.is_dir():
        source = _checkpoint(where, path)
    elif path.name.endswith(INDEX):
        source = _divided(where, path)
    elif b"\xa8purestep" in _start(path):
        source = _packed(where, path)
    else:
        source = _safetensors(where, path)
    return source


def read_all(where: str, source: Source, paths: list[str]) -> Iterator[tuple[str, mx.array | None, str]]:
    """Yield each path with its array, or with `None` and what is wrong; few are in memory at a time.

    Raises:
        OSError: if the system could not read: that says nothing about the file.
    """
    for group in _groups(source.leaves, paths):
        try:
            found: dict[str, Any] = source.read(group)
            problems = {}
        except CorruptError:
            found, problems = _one_by_one(where, source, group)
        for path in group:
            yield path, found.get(path), problems.get(path, "")


def _one_by_one(where: str, source: Source, paths: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    found: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for path in paths:
        try:
            found |= source.read([path])
        except CorruptError as error:
            problems[path] = str(error).removeprefix(f"{where}: ")
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


def _checkpoint(where: str, path: Path) -> Source:
    manifest = directory.read(where, path)
    problems = []
    for name in manifest.files:
        try:
            manifest.check_file(where, name)
        except CorruptError as error:
            problems.append(str(error).removeprefix(f"{where}: "))

    def read(paths: list[str]) -> dict[str, mx.array]:
        # Past the checks of whole files, made above: an array may be sound in a file that is not.
        return reader.read(where, path, manifest.places, manifest.leaves, paths)

    kind = "replay bundle" if "replay" in manifest.record.metadata else "checkpoint"
    return Source(path, kind, manifest.leaves, read, True, manifest.record, tuple(problems))


def _safetensors(where: str, path: Path) -> Source:
    metadata = contents(where, path).metadata
    header = metadata.pop(_KEY, None)
    if header is None:
        _check_foreign(where, path, json.dumps(metadata))
        names = {path.name: None}
        return _foreign(where, path, "safetensors, not purestep's", names)
    if metadata != tensors.ECOSYSTEM:
        raise CorruptError(f"{where}: {path} is damaged: its metadata is not what was written")
    stored = stored_tree(where, path, unseal(where, str(path), header), None)
    return Source(path, "safetensors", dict(tree.spec_items(stored.tree)), stored.read, True)


def _divided(where: str, path: Path) -> Source:
    with reading(where, path):
        data = path.read_bytes()
    try:
        text = data.decode()
        index = json.loads(text)
        held = {str(key): str(name) for key, name in index["weight_map"].items()}
        metadata = dict(index.get("metadata") or {})
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise CorruptError(f"{where}: {path} is damaged: it is not an index of safetensors files") from None
    reader.check_names(where, path, held.values())
    count = len(set(held.values()))
    shards = f"{count} file" + ("" if count == 1 else "s")
    header = metadata.get(_KEY)
    if header is None:
        _check_foreign(where, path, text)
        return _foreign(where, path, f"safetensors in {shards}, not purestep's", held)
    stored = stored_tree(where, path, unseal(where, str(path), header), held)
    leaves = dict(tree.spec_items(stored.tree))
    if metadata.get("total_size") != sum(nbytes(*leaf) for leaf in leaves.values()):
        raise CorruptError(f"{where}: {path} is damaged: total_size is not that of its arrays")
    return Source(path, f"safetensors in {shards}", leaves, stored.read, True, files=frozenset(held.values()))


def _check_foreign(where: str, path: Path, text: str) -> None:
    """Refuse a file of purestep's in which the name of the header is what was damaged."""
    if sealed(text):
        raise CorruptError(f"{where}: {path} is damaged: its header has another name")


def _foreign(where: str, path: Path, kind: str, held: dict[str, Any]) -> Source:
    """Return what files without purestep's header hold: one file, or an index's file by key."""
    divided = None not in held.values()
    leaves: dict[str, tuple[str, tuple[int, ...]]] = {}
    files: dict[str, str] = {}
    problems = []
    for name in dict.fromkeys(held.values() if divided else held):
        try:
            for key, array in _lazy(where, path.parent / name).items():
                if divided and held.get(key) != name:
                    continue
                leaves[key] = (tree.dtype_name(array.dtype), array.shape)
                files[key] = name
        except CorruptError as error:
            if not divided:
                raise
            problems.append(str(error).removeprefix(f"{where}: "))
    if divided:
        lost = [key for key, name in held.items() if key not in files]
        problems += [f"{key} is not in {held[key]}, where the index says" for key in lost]

    def read(paths: list[str]) -> dict[str, mx.array]:
        found: dict[str, mx.array] = {}
        for name in {files[key] for key in paths}:
            arrays = _lazy(where, path.parent / name)
            found |= {key: arrays[key] for key in paths if files[key] == name and key in arrays}
        try:
            mx.eval(found)
        except RuntimeError as error:
            raise CorruptError(f"{where}: {path} cannot be read ({error})") from None
        return found

    return Source(
        path, kind, leaves, read, False, None, tuple(problems), frozenset(held.values() if divided else ())
    )


def _lazy(where: str, path: Path) -> dict[str, mx.array]:
    contents(where, path)  # checks the header against the file's length
    return reader.lazy(where, path)


def _packed(where: str, path: Path) -> Source:
    """Return what `to_bytes` packed; msgpack can only be read whole."""
    try:
        arrays = dict(tree.items(from_bytes(path.read_bytes())))
    except ValueError as error:
        said = str(error).removeprefix("checkpoint.from_bytes: ")
        raise CorruptError(f"{where}: {path}: {said}") from None
    leaves = {name: (tree.dtype_name(array.dtype), array.shape) for name, array in arrays.items()}
    return Source(path, "msgpack", leaves, lambda paths: {name: arrays[name] for name in paths}, True)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)
