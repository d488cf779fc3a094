"""One writer to a directory: the second is told who the first is."""

import fcntl
import json
import os
import re
import socket
from pathlib import Path

_NAME = ".lock"


class LockedError(RuntimeError):
    """Another process, or another `Checkpointer` of this one, writes to the directory."""


class Lock:
    """An advisory lock on a directory; the system lets go of it when its holder dies."""

    def __init__(self, where: str, directory: Path):
        self._descriptor = -1
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(directory / _NAME, flags, 0o644)
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

    def release(self) -> None:
        """Let the next writer in."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def owner_name() -> str:
    """Return `host.pid` of this process, as it stands in the names of temporaries."""
    return f"{_host()}.{os.getpid()}"


def is_of_this_host(name: str) -> bool:
    """Tell whether a temporary's name says that a process of this host made it."""
    return re.fullmatch(rf"\..*\.{re.escape(_host())}\.\d+\.\w+", name) is not None


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "unknown"


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 1000, 0))
        return f"pid {int(owner['pid'])} on {str(owner['host'])[:100]}"
    except (ValueError, LookupError, TypeError):
        return "another process"
