"""Where callbacks write: standard output and files. A failure is one warning, and training goes on."""

import errno
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk import atomic
from purestep._core.escaping import encodable


class MetricsWarning(UserWarning):
    """A row, a sample or a picture could not be written; training goes on."""


class Guarded:
    """Writes something; the first failure of the system is a warning, later ones are silent.

    A terminal that is closed or a disk that is full must not end a run of days.
    """

    def __init__(self, caller: str, place: object, write: Callable[..., object]):
        self._caller, self._place, self._write = caller, place, write
        self._warned = False

    def __call__(self, *what: Any) -> None:
        """Write it."""
        try:
            self._write(*what)
        except OSError as error:
            if not self._warned:
                self._warned = True
                reason = error.strerror or error
                message = f"{self._caller}: {self._place} cannot be written, training goes on: {reason}"
                warnings.warn(message, MetricsWarning, stacklevel=2)


def print_line(text: str) -> None:
    """Print a line and flush it; characters that the output cannot encode are escaped."""
    print(encodable(text, getattr(sys.stdout, "encoding", None) or "utf-8"), flush=True)


def begin_file(path: Path, start: int, belongs: Callable[[bytes], bool]) -> None:
    """Prepare a file of lines for a run.

    A new run moves a file that it finds to `NAME.before`, or to `NAME.before-2` and so on. A resumed run
    keeps the lines that belong to the steps before it.

    Args:
        path: the file; its directory is created.
        start: the number of steps made before.
        belongs: tells whether a line is kept in a resumed run.

    Raises:
        OSError: if the file cannot be prepared.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.stat().st_size:
        if start == 0:
            path.replace(free(path))
        else:
            lines = [line for line in path.read_bytes().split(b"\n") if line and belongs(line)]
            atomic.write_text(path, "".join(f"{line.decode()}\n" for line in lines))
    path.touch()


def append_line(path: Path, text: str) -> None:
    """Append a line to a file. If only a part of it fits on the disk, nothing is appended.

    Raises:
        OSError: if it cannot be written.
    """
    data = text.encode() + b"\n"
    with path.open("ab", buffering=0) as file:
        end = file.tell() if file.seekable() else None
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            if end is not None:
                file.truncate(end)  # Otherwise the next line would continue this one.
            raise


def free(path: Path) -> Path:
    """Return a name for an older file: `NAME.before`, or `NAME.before-2` and so on."""
    found, number = path.with_name(f"{path.name}.before"), 1
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}.before-{number}")
    return found
