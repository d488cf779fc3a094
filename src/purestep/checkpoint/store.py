"""The directory of all checkpoints: what is there, putting one in its place, removing one, tidying up."""

import os
import secrets
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

from purestep.checkpoint import atomic, directory, lock
from purestep.checkpoint.record import Record

# Ends of a temporary's name, after its checkpoint, its writer and eight random digits.
_TEMPORARY = "tmp"
_REPLACED = "old"


class CorruptWarning(UserWarning):
    """A checkpoint is damaged and was passed over."""


def steps(root: Path) -> list[int]:
    """Return the steps of all checkpoints, intact or not, in order."""
    found = [directory.step_of(entry) for entry in root.iterdir()] if root.is_dir() else []
    return sorted(step for step in found if step is not None)


def existing(where: str, root: Path, step: int) -> Path:
    """Return the directory of a checkpoint; refuse a step that is not there, with those that are."""
    path = directory.located(root, step)
    if not os.path.lexists(path):
        there = ", ".join(map(str, steps(root))) or "none"
        raise FileNotFoundError(f"{where}: {root} has no step {step}; it has: {there}")
    return path


def records(where: str, root: Path) -> list[Record]:
    """Return the record of every checkpoint with a sound manifest, by step; warn of the others."""
    found = []
    for step in steps(root):
        path = directory.located(root, step)
        try:
            found.append(directory.read(where, path).record)
        except (ValueError, FileNotFoundError) as error:
            if os.path.lexists(path):  # otherwise its writer has just deleted it
                warnings.warn(str(error), CorruptWarning, stacklevel=3)
    return found


def claim(where: str, root: Path) -> lock.Lock:
    """Make the directory if need be, become its only writer, and tidy up after one that died.

    Raises:
        LockedError: if it has a writer.
        OSError: if it cannot be written.
    """
    try:
        if not root.is_dir():
            root.mkdir(parents=True)
            atomic.flush(root.parent)
        claimed = lock.Lock(where, root)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"{where}: {root} cannot be written ({error.strerror}): "
            "choose another directory or change its permissions",
        ) from None
    for entry in root.iterdir():
        # Having the lock shows that no writer of this host is alive; of other hosts it shows nothing.
        if not entry.is_symlink() and entry.is_dir() and lock.is_of_this_host(entry.name):
            final = root / entry.name[1:].partition(".")[0]
            if entry.name.endswith(_REPLACED) and not final.exists():
                entry.rename(final)  # its writer died between two renames
            else:
                shutil.rmtree(entry, ignore_errors=True)
    return claimed


def put(root: Path, step: int, fill: Callable[[Path], None]) -> None:
    """Let `fill` fill a hidden directory, then give it its name in one step, in place of any of that name."""
    final = directory.located(root, step)
    temporary = _hidden(final, _TEMPORARY)
    try:
        temporary.mkdir()
        fill(temporary)
        if os.path.lexists(final):
            replaced = _hidden(final, _REPLACED)
            final.rename(replaced)
            temporary.rename(final)
            _discard(replaced)
        else:
            temporary.rename(final)
        atomic.flush(root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove(root: Path, step: int) -> None:
    """Delete a checkpoint, first its name, so that no reader ever meets half of one."""
    final = directory.located(root, step)
    hidden = _hidden(final, _TEMPORARY)
    final.rename(hidden)
    _discard(hidden)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _hidden(final: Path, suffix: str) -> Path:
    return final.parent / f".{final.name}.{lock.owner_name()}.{secrets.token_hex(4)}{suffix}"
