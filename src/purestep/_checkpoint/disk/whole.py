"""Write directories that are complete or absent."""

import os
import secrets
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from purestep._checkpoint.disk import atomic, lock
from purestep._checkpoint.format import names
from purestep._checkpoint.format.header import kind_of

# Random parts of the names of hidden directories that this process is writing.
_UNDER_WAY: set[str] = set()


def check_vacant(caller: str, path: Path) -> None:
    """Refuse a path that `write_directory` cannot take: of a file, or of a directory with entries.

    Raises:
        FileExistsError: for a directory with entries, or the working directory.
        NotADirectoryError: for a file.
    """
    kind = kind_of(caller, path, follow=False)
    if not kind:
        return
    if kind != "directory":
        raise NotADirectoryError(f"{caller}: path must be a directory, got the file {path}")
    found = next(path.iterdir(), None)
    if found is not None:
        raise FileExistsError(
            f"{caller}: {path} is not empty, it has {found.name!a}: "
            "delete it first, or save under another name"
        )
    if path.samefile(os.curdir):
        raise FileExistsError(
            f"{caller}: {path} is the working directory, which cannot be replaced: give one in it"
        )


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a hidden directory beside `path`, then rename it to `path`.

    There must be nothing at `path`, or an empty directory, whose permissions are kept. `fill` must flush
    the files that it writes. Missing parent directories are created. Hidden directories of the same name are
    removed first: those of killed processes, and those that this process could not remove earlier.

    Raises:
        NotFlushedError: if the directory has its name, but the rename could not be flushed. After any other
            error nothing is left.
    """
    atomic.make_directory(path.parent)
    _remove_abandoned(path)
    token = secrets.token_hex(4)
    hidden = path.parent / names.temporary_directory(path.name, lock.host(), os.getpid(), token)
    _UNDER_WAY.add(token)
    try:
        hidden.mkdir()
        fill(hidden)
        if kind_of("", path, follow=False):
            hidden.chmod(stat.S_IMODE(path.stat().st_mode))
        atomic.flush(hidden)
        hidden.rename(path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to see
            shutil.rmtree(hidden, ignore_errors=True)
        raise
    finally:
        _UNDER_WAY.discard(token)
    atomic.flush_name(path)


def _remove_abandoned(path: Path) -> None:
    name = names.temporary_directories(path.name, lock.host())
    with suppress(OSError):  # another user's directory that cannot be removed must not prevent a save
        for entry in path.parent.iterdir():
            found = name.fullmatch(entry.name)
            if not found or entry.is_symlink() or not entry.is_dir():
                continue
            pid, token = int(found[1]), found[2]
            if token not in _UNDER_WAY if pid == os.getpid() else not lock.alive(pid):
                shutil.rmtree(entry, ignore_errors=True)
