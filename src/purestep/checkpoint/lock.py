"""One writer to a directory: the second is told who the first is."""

import fcntl
import json
import os
import re
import socket
import weakref
from pathlib import Path

_NAME = ".lock"


class LockedError(RuntimeError):
    """Another process, or another `Checkpointer` of this one, writes to the directory."""


class Lock:
    """An advisory lock on a directory; the system lets go of it when its holder dies."""

    def __init__(self, where: str, directory: Path):
        self._descriptor = -1
        self._path = directory / _NAME
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            me = {"pid": os.getpid(), "host": socket.gethostname()}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(me).encode(), 0)
        except BlockingIOError:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise LockedError(
                f"{where}: {directory} is being written by {owner}: "
                "close that writer first, or use another directory"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _HELD.add(self)

    def check(self, where: str) -> None:
        """Refuse to go on when the lock's file was removed or replaced: another writer may have another."""
        mine = os.fstat(self._descriptor)
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            there = None
        if there is None or (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
            raise LockedError(
                f"{where}: {self._path} was removed or replaced while it was held: close this writer, "
                "and make another if no other process writes there"
            )

    def release(self) -> None:
        """Let the next writer in, also when a forked child still has the file open."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self._close()


_HELD: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def _forget() -> None:
    # A forked child would hold the lock of a parent that dies for as long as it lives itself.
    for held in list(_HELD):
        held._close()


os.register_at_fork(after_in_child=_forget)


def host() -> str:
    """Return this host's name as it stands in the names of temporaries."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "unknown"


def owner_name() -> str:
    """Return `host.pid` of this process, as it stands in the names of temporaries."""
    return f"{host()}.{os.getpid()}"


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 1000, 0))
        return f"pid {int(owner['pid'])} on {str(owner['host'])[:100]}"
    except (ValueError, LookupError, TypeError):
        return "another process"
