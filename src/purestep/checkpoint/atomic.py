"""Files that are complete or absent."""

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from purestep.checkpoint import lock


class NotFlushedError(OSError):
    """What was written is in its place, and may not survive a crash of the system."""


def write(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a temporary file beside `path`, then put it in its place in one step.

    A reader sees the old file or the new one, whole, also after a crash: the data and the directory
    are flushed to the disk before and after the rename. When `fill` fails, `path` is untouched and the
    temporary file is gone. What processes of this host that were killed left of the same file is removed.

    Raises:
        NotFlushedError: if the new file is there, and the directory could not be flushed.
    """
    make_directory(path.parent)
    _remove_abandoned(path)
    temporary = path.parent / f".{path.name}.{lock.owner_name()}.{secrets.token_hex(4)}.tmp{path.suffix}"
    # Not tempfile's: its files are for their owner alone, and a process has only one umask to ask about.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        fill(temporary)
        flush(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_name(path)


def flush_name(path: Path) -> None:
    """Flush the directory of what has just got its name.

    Raises:
        NotFlushedError: if that fails.
    """
    try:
        flush(path.parent)
    except OSError as error:
        raise NotFlushedError(
            error.errno,
            f"{path} is written and can be read, but its directory could not be flushed to the disk "
            f"({error.strerror or error}): a crash of the system may undo it",
        ) from error


def make_directory(root: Path) -> None:
    """Make a directory and its parents, each of them on the disk."""
    missing = [path for path in [root, *root.parents] if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file of text, complete or absent."""

    def fill(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write(path, fill)


def flush(path: Path) -> None:
    """Wait until a file's data, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    host = lock.owner_name().rpartition(".")[0]
    name = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(host)}\.([1-9]\d{{0,8}})\.\w+\.tmp.*")
    for entry in path.parent.iterdir():
        found = name.fullmatch(entry.name)
        if found and not _lives(int(found[1])) and not entry.is_dir():
            entry.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True
