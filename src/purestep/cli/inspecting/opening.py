"""Open the path that `inspect` is given: one checkpoint, a file, a run or a directory of files."""

from pathlib import Path
from typing import NamedTuple

from purestep._checkpoint.format.header import problem
from purestep._checkpoint.inspecting.arrays import StoredArrays
from purestep._checkpoint.inspecting.listing import ListedFile, RunListing, list_files, list_run
from purestep._checkpoint.inspecting.opening import open_arrays
from purestep._checkpoint.run import directory, store
from purestep._core import checks

CALLER = "inspect"


class PathContent(NamedTuple):
    """What a path holds.

    Attributes:
        listing: the listing of a run's directory.
        files: the files of a directory of files.
        stored: the arrays of the checkpoint or file to show, or `None` if none can be read.
        problems: errors found without reading arrays.
    """

    listing: RunListing | None
    files: tuple[ListedFile, ...] | None
    stored: StoredArrays | None
    problems: list[str]


def open_path(path: Path, step: int | None) -> PathContent:
    """Open a path. Damage is returned as problems; a wrong argument raises."""
    path = path.absolute()
    if path.exists() and not path.is_dir() and not path.is_file():
        # Reading a device may not end.
        raise checks.error(CALLER, f"{path} must be a directory or a regular file")
    if not path.is_dir() or directory.is_checkpoint(path):
        if step is not None:
            raise checks.error(CALLER, f"--step needs the directory of a run, {path} is not one")
        return PathContent(None, None, *_opened(path))
    listing = list_run(CALLER, path)
    steps = [checkpoint.step for checkpoint in listing.checkpoints]
    if not steps:
        if step is not None:
            raise checks.error(CALLER, f"--step needs a directory of checkpoints, {path} holds none")
        return _of_files(path)
    if step is not None:
        return PathContent(listing, None, *_opened(store.existing(CALLER, path, step)))
    passed_over: list[str] = []
    for number in reversed(steps):
        stored, problems = _opened(store.existing(CALLER, path, number))
        if stored is not None:
            return PathContent(listing, None, stored, [*passed_over, *problems])
        passed_over += problems
    return PathContent(listing, None, None, passed_over)


def _of_files(path: Path) -> PathContent:
    """Open the newest readable file of a directory of files, such as a demo's run or a model."""
    files, opened = list_files(CALLER, path)
    if not files:
        raise checks.error(CALLER, f"there is no checkpoint in {path}: name one, or a file")
    passed_over: list[str] = []
    for file in reversed(files):
        if file.name in opened:
            return PathContent(None, files, opened[file.name], [*passed_over, *file.problems])
        passed_over += file.problems
    return PathContent(None, files, None, passed_over)


def _opened(path: Path) -> tuple[StoredArrays | None, list[str]]:
    try:
        stored = open_arrays(CALLER, path)
    except ValueError as error:
        return None, [problem(CALLER, error)]
    return stored, list(stored.problems)
