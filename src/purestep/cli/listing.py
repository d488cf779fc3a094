"""The content of a run's directory: checkpoints, the writer, and unfinished files."""

from pathlib import Path
from typing import NamedTuple

from purestep._checkpoint.disk import lock
from purestep._checkpoint.format import names
from purestep._checkpoint.format.names import INDEX, SUFFIX
from purestep._checkpoint.format.specs import nbytes
from purestep._checkpoint.run import directory, store
from purestep.cli.stored import Source, file_problems, open_source, problem_of


class Checkpoint(NamedTuple):
    """One checkpoint. Its manifest and the headers of its files are checked; unknown values are `None`."""

    step: int
    time: float | None
    metrics: dict[str, float]
    bytes: int | None
    problems: list[str]


class Temporary(NamedTuple):
    """A directory of a checkpoint that a writer has not finished."""

    name: str
    owner: str
    bytes: int


class File(NamedTuple):
    """One file of arrays or the index of several files; unknown values are `None`."""

    name: str
    time: float
    arrays: int | None
    bytes: int | None
    problems: list[str]


class Listing(NamedTuple):
    """The directory of a run.

    Attributes:
        path: the path of the directory.
        checkpoints: the checkpoints in order of steps.
        writer: the process that holds the lock, or `None`.
        temporaries: the unfinished directories.
    """

    path: str
    checkpoints: list[Checkpoint]
    writer: str | None
    temporaries: list[Temporary]


def list_run(caller: str, root: Path) -> Listing:
    """List a directory of checkpoints without reading arrays."""
    return Listing(
        str(root),
        [_checkpoint(caller, entry) for entry in store.entries(root)],
        lock.writer(root),
        [found for entry in sorted(root.iterdir()) if (found := _temporary(entry)) is not None],
    )


def list_files(caller: str, root: Path) -> tuple[tuple[File, ...], dict[str, Source]]:
    """List the safetensors files of a directory in the order of writing, and open the readable ones.

    A file that an index names is not listed separately.
    """
    files: dict[str, File] = {}
    sources: dict[str, Source] = {}
    shards: set[str] = set()
    # Indexes come first, since they name the files that belong to them.
    for entry in sorted(root.iterdir(), key=lambda entry: (not entry.name.endswith(INDEX), entry.name)):
        if entry.name in shards or not entry.name.endswith((SUFFIX, INDEX)) or not entry.is_file():
            continue
        written = entry.stat().st_mtime
        try:
            source = sources[entry.name] = open_source(caller, entry)
        except ValueError as error:
            files[entry.name] = File(entry.name, written, None, None, [problem_of(caller, error)])
            continue
        shards |= source.files
        size = sum(nbytes(*leaf) for leaf in source.leaves.values())
        files[entry.name] = File(entry.name, written, len(source.leaves), size, list(source.problems))
    return tuple(sorted(files.values(), key=lambda file: (file.time, file.name))), sources


def _checkpoint(caller: str, path: Path) -> Checkpoint:
    step, _ = directory.step_and_attempt(path) or (0, 1)
    try:
        manifest = directory.read(caller, path)
    except ValueError as error:
        return Checkpoint(step, None, {}, None, [problem_of(caller, error)])
    record = manifest.record
    return Checkpoint(step, record.time, record.metrics, record.bytes, file_problems(caller, manifest))


def _temporary(entry: Path) -> Temporary | None:
    writer = names.writer_of(entry.name)
    if writer is None or entry.is_symlink() or not entry.is_dir():
        return None
    try:
        size = sum(file.lstat().st_size for file in entry.iterdir() if file.is_file())
    except FileNotFoundError:  # the writer has just finished
        return None
    return Temporary(entry.name, f"pid {writer[1]} on {writer[0]}", size)
