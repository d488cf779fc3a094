"""Files that are complete or absent."""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from purestep._checkpoint.disk import lock
from purestep._checkpoint.format import names
from purestep._checkpoint.format.header import kind_of, naming

# Random parts of the names of temporaries that this process is writing.
_UNDER_WAY: set[str] = set()


class NotFlushedError(OSError):
    """What was written is in its place, and may not survive a crash of the system.

    Attributes:
        path: what was written.
    """

    path: Path


def write(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a temporary file beside `path`, then put it in its place in one step.

    A reader sees the old file or the new one, whole, also after a crash: the data and the directory
    are flushed to the disk before and after the rename. When `fill` fails, `path` is untouched and the
    temporary file is removed. Temporaries of the same state that were left on this host are removed first:
    those of processes that were killed, and those of this one that it could not remove.

    Raises:
        NotFlushedError: if the new file is there, and the directory could not be flushed.
    """
    make_directory(path.parent)
    _remove_abandoned(path)
    token = secrets.token_hex(4)
    temporary = path.parent / names.temporary_file(path.name, lock.host(), os.getpid(), token)
    _UNDER_WAY.add(token)
    try:
        # Not tempfile's: its files are for their owner alone, and a process has only one umask to ask about.
        with naming(temporary):
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        fill(temporary)
        flush(temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to see
            temporary.unlink(missing_ok=True)
        raise
    finally:
        _UNDER_WAY.discard(token)
    flush_name(path)


def flush_name(path: Path) -> None:
    """Flush the directory of what has just got its name.

    Raises:
        NotFlushedError: if that fails.
    """
    try:
        flush(path.parent)
    except OSError as error:
        failure = NotFlushedError(
            error.errno,
            f"{path} is written and can be read, but its directory could not be flushed to the disk "
            f"({error.strerror or error}): a crash of the system may undo it",
        )
        failure.path = path
        raise failure from error


def make_directory(root: Path) -> None:
    """Make a directory and its parents, each of them on the disk."""
    missing = [path for path in [root, *root.parents] if not kind_of("", path)]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file of text, complete or absent."""

    def fill(temporary: Path) -> None:
        with naming(temporary):
            temporary.write_text(text, encoding="utf-8")

    write(path, fill)


def flush(path: Path) -> None:
    """Wait until a file's data, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    with naming(path):
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    name = names.temporaries(lock.host())
    state = names.undivided(path.name)
    with suppress(OSError):  # one that cannot be removed, somebody else's, must not prevent a save
        for entry in path.parent.iterdir():
            found = name.fullmatch(entry.name)
            if not found or names.undivided(found[1]) != state or entry.is_dir():
                continue
            pid, token = int(found[2]), found[3]
            if token not in _UNDER_WAY if pid == os.getpid() else not _lives(pid):
                entry.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True
