"""The directory of all checkpoints: list, add and remove checkpoints, and clean up."""

import errno
import os
import secrets
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk import atomic, lock
from purestep._checkpoint.disk.naming import check_path
from purestep._checkpoint.format import names
from purestep._checkpoint.format.header import kind_of, problem
from purestep._checkpoint.run import directory
from purestep._checkpoint.run.record import Record, best_of
from purestep._core import checks

Problems = dict[int, list[str]]

# Hidden directories that this process is writing.
_UNDER_WAY: set[Path] = set()

ATTEMPTS = 50  # to read while a writer deletes checkpoints


class CorruptWarning(UserWarning):
    """A checkpoint is damaged and was skipped."""


def root_of(caller: str, path: Any) -> Path:
    """Return the absolute path of a directory of checkpoints, which may not exist yet."""
    root = check_path(caller, check_path(caller, path).absolute())
    if kind_of(caller, root) not in ("", "directory"):
        raise NotADirectoryError(f"{caller}: path must be a directory, {root} is a file")
    return root


def entries(root: Path) -> list[Path]:
    """Return the directories of all checkpoints, intact or not, by step and then by attempt."""
    try:
        found = [entry for entry in root.iterdir() if directory.step_and_attempt(entry)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda entry: directory.step_and_attempt(entry) or ())


def steps(root: Path) -> list[int]:
    """Return the steps of all checkpoints, intact or not, in order."""
    found = [directory.step_and_attempt(entry) for entry in entries(root)]
    return sorted({pair[0] for pair in found if pair})


def of_step(root: Path, step: int) -> list[Path]:
    """Return the directories of one step, the newest last."""
    return [entry for entry in entries(root) if (directory.step_and_attempt(entry) or (None,))[0] == step]


def existing(caller: str, root: Path, step: int) -> Path:
    """Return the directory of a checkpoint; the error for a missing step lists the steps that exist."""
    found = of_step(root, step)
    if not found:
        there = ", ".join(map(str, steps(root))) or "none"
        raise FileNotFoundError(f"{caller}: {root} has no step {step}; it has: {there}")
    return found[-1]


def manifests(caller: str, root: Path) -> tuple[list[directory.Manifest], list[str]]:
    """Return every valid manifest, in the order of saving, and the problems of the others."""
    for _ in range(ATTEMPTS):
        sound, damaged, vanished = {}, [], False
        for entry in entries(root):
            try:
                manifest = directory.read(caller, entry)
                sound[manifest.record.step] = manifest  # The newest attempt of a step counts.
            except (ValueError, OSError) as error:
                if not kind_of(caller, entry, follow=False):
                    vanished = True  # A writer has deleted it, so there may be newer ones: list again.
                elif isinstance(error, OSError):
                    raise  # The checkpoint may be intact, and the newest.
                else:
                    damaged.append(problem(caller, error))
        if not vanished:
            return sorted(sound.values(), key=lambda manifest: manifest.record.serial), damaged
    raise OSError(f"{caller}: checkpoints in {root} are deleted faster than they can be read")


def records(caller: str, root: Path, stacklevel: int = 3) -> list[Record]:
    """Return the records of all checkpoints with a valid manifest, in the order of saving; warn of others."""
    sound, damaged = manifests(caller, root)
    if damaged:
        warnings.warn(f"{caller}: damaged:\n  " + "\n  ".join(damaged), CorruptWarning, stacklevel=stacklevel)
    return [manifest.record for manifest in sound]


def problems(caller: str, root: Path, step: int | None) -> Problems:
    """Read every byte of the checkpoint of a step, or of all; return the problems of each, by step.

    Raises:
        OSError: if the system cannot read one for another reason than an error of the disk (EIO).
    """
    if step is not None:
        step = checks.integer(caller, "step", step, least=0)
        existing(caller, root, step)
    listed: Problems = {}
    for number in steps(root) if step is None else [step]:
        for entry in of_step(root, number)[-1:]:
            try:
                found = directory.read(caller, entry).verify(caller)
            except (ValueError, OSError) as error:
                refused = isinstance(error, OSError) and error.errno != errno.EIO
                if refused and kind_of(caller, entry, follow=False):
                    raise
                found = [problem(caller, error)]
            if kind_of(caller, entry, follow=False):  # Otherwise its writer has deleted it meanwhile.
                listed[number] = found
    return listed


def best(caller: str, root: Path, metric: str, mode: str) -> Record | None:
    """Return the record with the best metric, or `None`; warn of damaged checkpoints."""
    return next(iter(best_of(records(caller, root, stacklevel=4), metric, mode)), None)


def claim(caller: str, root: Path) -> lock.Lock:
    """Create the directory if it is missing, take its lock, and clean up after writers that died.

    Raises:
        LockedError: if another writer has the lock.
        OSError: if it cannot be written.
    """
    try:
        atomic.make_directory(root)
        claimed = lock.Lock(caller, root)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"{caller}: {error.filename or root} cannot be written ({error.strerror}): "
            "choose another directory or change its permissions",
        ) from None
    _tidy(root)
    return claimed


def _tidy(root: Path) -> None:
    """Remove temporary directories of interrupted saves and deletions; ignore errors.

    The lock proves that no other writer of this host is alive. It proves nothing about other hosts.
    """
    with suppress(OSError):
        for entry in root.iterdir():
            if (
                (names.writer_of(entry.name) or ("",))[0] == lock.host()
                and entry not in _UNDER_WAY
                and entry.is_dir()
                and not entry.is_symlink()
            ):
                shutil.rmtree(entry, ignore_errors=True)


def hide(root: Path, step: int) -> Path:
    """Make the hidden directory of a checkpoint, for `put`."""
    hidden = _hidden(directory.path_of(root, step))
    _UNDER_WAY.add(hidden)
    hidden.mkdir()
    return hidden


def drop(hidden: Path) -> None:
    """Remove the hidden directory of a checkpoint that is not written."""
    _UNDER_WAY.discard(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def put(root: Path, step: int, fill: Callable[[Path], None], hidden: Path | None = None) -> Path:
    """Let `fill` write a hidden directory, then rename it to a free name of this step.

    An existing checkpoint of the same step does not change: the new one gets a higher attempt number.
    The caller must hold the lock. Hidden directories of earlier saves are removed.

    Raises:
        NotFlushedError: if the rename succeeded but the directory could not be flushed. After any other
            error nothing is left.
    """
    taken = [(directory.step_and_attempt(entry) or (0, 0))[1] for entry in of_step(root, step)]
    final = directory.path_of(root, step, max(taken, default=0) + 1)
    temporary = hidden or _hidden(final)
    try:
        if hidden is None:
            temporary.mkdir()
        fill(temporary)
        temporary.rename(final)
    except BaseException:
        with suppress(OSError):  # closing a directory may raise in spite of `ignore_errors`
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        _UNDER_WAY.discard(temporary)
    atomic.flush_name(final)
    _tidy(root)
    return final


def remove(path: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that no reader sees half of it.

    Raises:
        OSError: if that fails. The message says if only files remain, under a hidden name.
    """
    hidden = _hidden(path)
    path.rename(hidden)
    try:
        if kind_of("", hidden, follow=False) == "directory":
            shutil.rmtree(hidden)
        else:
            hidden.unlink()
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path} is deleted, but its files could not be removed from {hidden} "
            f"({error.strerror or error}): the next save removes them",
        ) from error


def _hidden(final: Path) -> Path:
    return final.parent / names.temporary_directory(
        final.name, lock.host(), os.getpid(), secrets.token_hex(4)
    )
