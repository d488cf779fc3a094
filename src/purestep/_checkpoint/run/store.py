"""The directory of all checkpoints: what is there, putting one in its place, removing one, tidying up."""

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
from purestep._checkpoint.run.record import Record
from purestep._core import checks

Problems = dict[int, list[str]]

ATTEMPTS = 50  # to read while a writer cleans up


class CorruptWarning(UserWarning):
    """A checkpoint is damaged and was passed over."""


def root_of(caller: str, path: Any) -> Path:
    """Return the absolute path of a directory of checkpoints, which may not exist yet."""
    root = check_path(caller, check_path(caller, path).absolute())
    if kind_of(caller, root) not in ("", "directory"):
        raise NotADirectoryError(f"{caller}: path must be a directory, {root} is a file")
    return root


def entries(root: Path) -> list[Path]:
    """Return the directories of all checkpoints, intact or not, by step; saved again, the newer is later."""
    try:
        found = [entry for entry in root.iterdir() if directory.step_of(entry)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda entry: directory.step_of(entry) or ())


def steps(root: Path) -> list[int]:
    """Return the steps of all checkpoints, intact or not, in order."""
    found = [directory.step_of(entry) for entry in entries(root)]
    return sorted({step_and_attempt[0] for step_and_attempt in found if step_and_attempt})


def of_step(root: Path, step: int) -> list[Path]:
    """Return the directories of one step, the newest last."""
    return [entry for entry in entries(root) if (directory.step_of(entry) or (None,))[0] == step]


def existing(caller: str, root: Path, step: int) -> Path:
    """Return the directory of a checkpoint; refuse a step that is not there, with those that are."""
    found = of_step(root, step)
    if not found:
        there = ", ".join(map(str, steps(root))) or "none"
        raise FileNotFoundError(f"{caller}: {root} has no step {step}; it has: {there}")
    return found[-1]


def manifests(caller: str, root: Path) -> tuple[list[directory.Manifest], list[str]]:
    """Return every sound manifest, in the order of saving, and what is wrong with the others."""
    for _ in range(ATTEMPTS):
        sound, damaged, vanished = {}, [], False
        for entry in entries(root):
            try:
                manifest = directory.read(caller, entry)
                sound[manifest.record.step] = manifest  # of a step saved again, the newer
            except (ValueError, OSError) as error:
                if not kind_of(caller, entry, follow=False):
                    vanished = True  # its writer has deleted it: there may be a newer one than were listed
                elif isinstance(error, OSError):
                    raise  # the checkpoint may be sound, and the newest
                else:
                    damaged.append(problem(caller, error))
        if not vanished:
            return sorted(sound.values(), key=lambda manifest: manifest.record.serial), damaged
    raise OSError(f"{caller}: {root} is cleaned up faster than it can be read")


def records(caller: str, root: Path, stacklevel: int = 3) -> list[Record]:
    """Return the record of every checkpoint with a sound manifest, in the order of saving; warn of others."""
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


def claim(caller: str, root: Path) -> lock.Lock:
    """Make the directory if need be, become its only writer, and tidy up after one that died.

    Raises:
        LockedError: if it has a writer.
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
    """Remove what is left of checkpoints that were being written or deleted, where that can be done.

    Having the lock shows that no other writer of this host is alive; of other hosts it shows nothing.
    """
    with suppress(OSError):
        for entry in root.iterdir():
            if names.host_of(entry.name) == lock.host() and entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)


def put(root: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """Let `fill` fill a hidden directory, then give it a free name of this step, by one rename.

    A checkpoint of the same step that is there already stays as it is: the new one has a higher number.
    The caller has the directory's lock: hidden directories that could not be removed before are removed.

    Raises:
        NotFlushedError: if it has its name, and the directory could not be flushed. Others leave nothing.
    """
    taken = [(directory.step_of(entry) or (0, 0))[1] for entry in of_step(root, step)]
    final = directory.located(root, step, max(taken, default=0) + 1)
    temporary = _hidden(final)
    try:
        temporary.mkdir()
        fill(temporary)
        temporary.rename(final)
    except BaseException:
        with suppress(OSError):  # which closing a directory raises all the same
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    atomic.flush_name(final)
    _tidy(root)
    return final


def remove(path: Path) -> None:
    """Delete a checkpoint, first its name, so that no reader ever meets half of one.

    Raises:
        OSError: if that fails, and says so if only its files remain, under a hidden name.
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
