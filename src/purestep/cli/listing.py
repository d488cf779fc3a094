"""What is in the directory of a run: its checkpoints, its writer, what a dead writer left."""

import json
import os
import re
import socket
from pathlib import Path
from typing import NamedTuple

from purestep._checkpoint.disk.tensors import SUFFIX
from purestep._checkpoint.format.header import CorruptError
from purestep._checkpoint.format.specs import nbytes
from purestep._checkpoint.run import directory, store
from purestep.cli.stored import INDEX, Source, open_source

_LOCK = ".lock"
_HIDDEN = re.compile(r"\.step_\d+(?:\.\d+)?\.(.+)\.(\d+)\.\w+")


class Checkpoint(NamedTuple):
    """One checkpoint, its manifest and the headers of its files checked; `None` for what cannot be known."""

    step: int
    time: float | None
    metrics: dict[str, float]
    bytes: int | None
    problems: list[str]


class Temporary(NamedTuple):
    """A directory that a writer has not finished, or did not live to remove."""

    name: str
    owner: str
    bytes: int


class File(NamedTuple):
    """One file of arrays, or the index of several; `None` for what cannot be known."""

    name: str
    time: float
    arrays: int | None
    bytes: int | None
    problems: list[str]


class Listing(NamedTuple):
    """The directory of a run.

    Attributes:
        path: where it is.
        checkpoints: by step.
        writer: who has it, or `None`.
        temporaries: what is not, or no longer, a checkpoint.
    """

    path: str
    checkpoints: list[Checkpoint]
    writer: str | None
    temporaries: list[Temporary]


def list_run(where: str, root: Path) -> Listing:
    """Look at a directory of checkpoints, and read none of their arrays."""
    return Listing(
        str(root),
        [_checkpoint(where, entry) for entry in store.entries(root)],
        _writer(root),
        [found for entry in sorted(root.iterdir()) if (found := _temporary(entry)) is not None],
    )


def list_files(where: str, root: Path) -> tuple[tuple[File, ...], dict[str, Source]]:
    """Look at the safetensors files of a directory, in the order of writing, and open those that can be read.

    A file that belongs to the index of a divided one is not listed again.
    """
    files: dict[str, File] = {}
    sources: dict[str, Source] = {}
    shards: set[str] = set()
    # The indexes first: they name the files that are parts.
    for entry in sorted(root.iterdir(), key=lambda entry: (not entry.name.endswith(INDEX), entry.name)):
        if entry.name in shards or not entry.name.endswith((SUFFIX, INDEX)) or not entry.is_file():
            continue
        written = entry.stat().st_mtime
        try:
            source = sources[entry.name] = open_source(where, entry)
        except ValueError as error:
            files[entry.name] = File(entry.name, written, None, None, [str(error).removeprefix(f"{where}: ")])
            continue
        shards |= source.files
        size = sum(nbytes(*leaf) for leaf in source.leaves.values())
        files[entry.name] = File(entry.name, written, len(source.leaves), size, list(source.problems))
    return tuple(sorted(files.values(), key=lambda file: (file.time, file.name))), sources


def _checkpoint(where: str, path: Path) -> Checkpoint:
    step, _ = directory.step_of(path) or (0, 1)
    try:
        manifest = directory.read(where, path)
    except ValueError as error:
        return Checkpoint(step, None, {}, None, [str(error).removeprefix(f"{where}: ")])
    problems = []
    for name in manifest.files:
        try:
            manifest.check_file(where, name)
        except CorruptError as error:
            problems.append(str(error).removeprefix(f"{where}: "))
    record = manifest.record
    return Checkpoint(step, record.time, record.metrics, record.bytes, problems)


def _writer(root: Path) -> str | None:
    # A writer empties the file as it leaves. Trying the lock itself could make a writer's own try fail.
    try:
        if not (root / _LOCK).is_file():
            return None  # to read a pipe would wait for its writer
        with (root / _LOCK).open("rb") as file:
            owner = json.loads(file.read(1000))
        pid, host = int(owner["pid"]), str(owner["host"])[:100]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    dead = ", which is no longer alive" if host == socket.gethostname() and not _alive(pid) else ""
    return f"pid {pid} on {host}{dead}"


def _temporary(entry: Path) -> Temporary | None:
    found = _HIDDEN.fullmatch(entry.name)
    if found is None or entry.is_symlink() or not entry.is_dir():
        return None
    try:
        size = sum(file.lstat().st_size for file in entry.iterdir() if file.is_file())
    except FileNotFoundError:  # its writer has just finished
        return None
    return Temporary(entry.name, f"pid {found[2]} on {found[1]}", size)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError, ValueError):
        return True
    return True
