"""A lock that allows one writer for a directory."""

import contextlib
import errno
import fcntl
import io
import json
import os
import re
import socket
import weakref
from pathlib import Path

from purestep._checkpoint.format import names
from purestep._checkpoint.format.header import naming


class LockedError(RuntimeError):
    """Another process, or another `Checkpointer` of this one, writes to the directory."""


class Lock:
    """An advisory lock on a directory. The system releases it when the process ends.

    The lock is also released when this object is deleted, even after an interrupt at any instruction: Python
    closes the file object. An interrupt could leave a plain file descriptor open.
    """

    def __init__(self, caller: str, directory: Path):
        self._path = directory / names.LOCK
        self._file: io.FileIO | None = None
        _HELD.add(self)  # before the file is opened: a child may be forked at any moment
        try:
            if self._path.is_symlink():  # opening it would create a file elsewhere
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(self._path))
            self._file = file = io.FileIO(self._path, "a+")
            self._acquire(caller, directory, file)
        except BaseException:
            self._unlock()
            raise

    def _acquire(self, caller: str, directory: Path, file: io.FileIO) -> None:
        if not self._is_at_its_path(file):
            raise OSError(errno.EBUSY, "replaced while it was opened", str(self._path))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(
                f"{caller}: {directory} is being written by {_owner(file.fileno())}: "
                "close that writer first, or use another directory"
            ) from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())

    def check(self, caller: str) -> None:
        """Raise an error if the lock file was removed or replaced: another writer may hold a new one."""
        if self._file is None or not self._is_at_its_path(self._file):
            raise LockedError(
                f"{caller}: {self._path} was removed or replaced while it was held: close this writer, "
                "and make another if no other process writes there"
            )

    def release(self) -> None:
        """Release the lock, even if a forked child still has the file open."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # the owner in the file is only for messages
                self._file.truncate(0)
            self._unlock()

    def _unlock(self) -> None:
        if self._file is not None:
            # Closing unlocks too, but not while a child has the file open, such as a compiler that is being
            # started.
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)
            self._close()

    def _is_at_its_path(self, file: io.FileIO) -> bool:
        with naming(self._path):
            mine = os.fstat(file.fileno())
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # it is closed all the same
                file.close()

    def __del__(self) -> None:
        self._unlock()  # in a forked child there is no file any more


_HELD: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def _forget() -> None:
    # Otherwise a forked child would keep the lock after its parent ends.
    for held in list(_HELD):
        held._close()


os.register_at_fork(after_in_child=_forget)


def host() -> str:
    """Return the name of this host for the names of temporary files."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "unknown"


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 1000, 0))
        return f"pid {int(owner['pid'])} on {str(owner['host'])[:100]}"
    except (ValueError, LookupError, TypeError):
        return "another process"


def alive(pid: int) -> bool:
    """Tell whether a process of this host exists. A number that no process can have counts as alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError, ValueError):  # another user's process, or an odd number
        return True
    return True


def writer(directory: Path) -> str | None:
    """Return the process that holds the lock of a directory, in words; `None` if it is free.

    Does not take the lock: a writer that starts at that moment would fail.
    """
    path = directory / names.LOCK
    try:
        if not path.is_file():
            return None  # reading a pipe would wait for its writer
        with path.open("rb") as file:
            owner = json.loads(file.read(1000))
        pid, owner_host = int(owner["pid"]), str(owner["host"])[:100]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    is_dead = owner_host == socket.gethostname() and not alive(pid)
    return f"pid {pid} on {owner_host}" + (", which is no longer alive" if is_dead else "")
