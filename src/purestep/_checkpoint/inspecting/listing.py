"""List a run's directory (checkpoints, the writer, what is unfinished), or a directory of files."""

from pathlib import Path
from typing import NamedTuple

from purestep._checkpoint.disk import lock
from purestep._checkpoint.format import names
from purestep._checkpoint.format.header import problem
from purestep._checkpoint.format.names import INDEX, SUFFIX
from purestep._checkpoint.format.specs import nbytes
from purestep._checkpoint.inspecting.arrays import StoredArrays
from purestep._checkpoint.inspecting.opening import file_problems, open_arrays
from purestep._checkpoint.run import directory, store


class ListedCheckpoint(NamedTuple):
    """One checkpoint of a run, with checked headers. Values that a damaged one does not tell are `None`."""

    step: int
    time: float | None
    metrics: dict[str, float]
    bytes: int | None
    problems: list[str]


class UnfinishedCheckpoint(NamedTuple):
    """A directory of a checkpoint that a writer has not finished."""

    name: str
    owner: str
    bytes: int


class ListedFile(NamedTuple):
    """One file of arrays or the index of several files; unknown values are `None`."""

    name: str
    time: float
    arrays: int | None
    bytes: int | None
    problems: list[str]


class RunListing(NamedTuple):
    """What the directory of a run holds.

    Attributes:
        path: the path of the directory.
        checkpoints: the checkpoints in order of steps.
        writer: the process that holds the lock, or `None`.
        temporaries: the unfinished directories.
    """

    path: str
    checkpoints: list[ListedCheckpoint]
    writer: str | None
    temporaries: list[UnfinishedCheckpoint]


def list_run(caller: str, root: Path) -> RunListing:
    """List a directory of checkpoints without reading arrays."""
    return RunListing(
        str(root),
        [_checkpoint(caller, entry) for entry in store.entries(root)],
        lock.writer(root),
        [found for entry in sorted(root.iterdir()) if (found := _temporary(entry)) is not None],
    )


def list_files(caller: str, root: Path) -> tuple[tuple[ListedFile, ...], dict[str, StoredArrays]]:
    """List the safetensors files of a directory in the order of writing, and open the readable ones.

    A file that an index names is not listed separately.
    """
    files: dict[str, ListedFile] = {}
    opened: dict[str, StoredArrays] = {}
    shards: set[str] = set()
    # Indexes come first, since they name the files that belong to them.
    for entry in sorted(root.iterdir(), key=lambda entry: (not entry.name.endswith(INDEX), entry.name)):
        if entry.name in shards or not entry.name.endswith((SUFFIX, INDEX)) or not entry.is_file():
            continue
        written = entry.stat().st_mtime
        try:
            stored = opened[entry.name] = open_arrays(caller, entry)
        except ValueError as error:
            files[entry.name] = ListedFile(entry.name, written, None, None, [problem(caller, error)])
            continue
        shards |= stored.files
        size = sum(nbytes(*leaf) for leaf in stored.leaves.values())
        files[entry.name] = ListedFile(entry.name, written, len(stored.leaves), size, list(stored.problems))
    return tuple(sorted(files.values(), key=lambda file: (file.time, file.name))), opened


def _checkpoint(caller: str, path: Path) -> ListedCheckpoint:
    step, _ = directory.step_and_attempt(path) or (0, 1)
    try:
        manifest = directory.read(caller, path)
    except ValueError as error:
        return ListedCheckpoint(step, None, {}, None, [problem(caller, error)])
    record = manifest.record
    return ListedCheckpoint(step, record.time, record.metrics, record.bytes, file_problems(caller, manifest))


def _temporary(entry: Path) -> UnfinishedCheckpoint | None:
    writer = names.writer_of(entry.name)
    if writer is None or entry.is_symlink() or not entry.is_dir():
        return None
    try:
        size = sum(file.lstat().st_size for file in entry.iterdir() if file.is_file())
    except FileNotFoundError:  # the writer has just finished
        return None
    return UnfinishedCheckpoint(entry.name, f"pid {writer[1]} on {writer[0]}", size)
