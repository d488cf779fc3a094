"""Write files that are complete or absent."""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from purestep._checkpoint.disk import lock
from purestep._checkpoint.format import names
from purestep._checkpoint.format.header import kind_of, naming

# Random parts of the names of temporary files that this process is writing.
_UNDER_WAY: set[str] = set()


class NotFlushedError(OSError):
    """The file is written and has its name, but may be lost if the system crashes.

    Attributes:
        path: the file or directory.
    """

    path: Path


def write(path: Path, fill: Callable[[Path], None]) -> None:
    """Write a temporary file beside `path` with `fill`, then rename it to `path`.

    A reader sees the complete old file or the complete new one, also after a crash: the data is flushed to
    the disk before the rename, and the directory after it. If `fill` fails, `path` is unchanged and the
    temporary file is removed. Older temporary files of the same state on this host are removed first: those
    of killed processes, and those that this process could not remove earlier.

    Raises:
        NotFlushedError: if the new file has its name, but the directory could not be flushed.
    """
    make_directory(path.parent)
    _remove_abandoned(path)
    token = secrets.token_hex(4)
    temporary = path.parent / names.temporary_file(path.name, lock.host(), os.getpid(), token)
    _UNDER_WAY.add(token)
    try:
        # `tempfile` is not used: its files can be read by their owner only.
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
    """Flush the directory of a path after a rename.

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
    """Make a directory and its parents, and flush each of them to the disk."""
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
    with suppress(OSError):  # another user's file that cannot be removed must not prevent a save
        for entry in path.parent.iterdir():
            found = name.fullmatch(entry.name)
            if not found or names.undivided(found[1]) != state or entry.is_dir():
                continue
            pid, token = int(found[2]), found[3]
            if token not in _UNDER_WAY if pid == os.getpid() else not lock.alive(pid):
                entry.unlink(missing_ok=True)
