"""A file of rows that grows, ends, or begins again."""

import contextlib
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from purestep.cli.plotting.reading import METRICS, RunFiles, open_regular, run_of
from purestep.cli.plotting.rows import LONGEST, Rows

_BLOCK = 2**20


class Change(NamedTuple):
    """What happened since the last look.

    Attributes:
        rows: the steps of the rows that were added, in the order of the file.
        again: whether the file was written anew: the run was resumed, or another one took its place.
    """

    steps: list[int]
    again: bool


class Follower:
    """Reads the rows of a run as they are appended.

    A line that is not complete is read when it is. A file that was replaced or became shorter is read again
    from its beginning.

    Args:
        caller: for errors.
        run: the directory of the run, or the file. It may not exist yet.

    Attributes:
        rows: all rows so far.
    """

    def __init__(self, caller: str, run: Path):
        self._given = run
        self.rows = Rows()
        self._caller, self._name = caller, run.name or os.path.basename(os.path.abspath(run))
        self._file: Any = None
        self._rest = b""
        self._skipping = False  # the rest of a line that is too long

    @property
    def path(self) -> Path:
        """The file of the metrics. Until something exists, the name tells nothing: a run may be `lr-0.1`."""
        return self._given / METRICS if self._given.is_dir() else self._given

    def poll(self) -> Change:
        """Read what was appended.

        Raises:
            ValueError: if the file is no regular file, or larger than 1 GiB.
            OSError: if it cannot be read.
        """
        again = self._file is not None and not self._same()
        if again:
            self.close()
            self.rows, self._rest, self._skipping = Rows(), b"", False
        if self._file is None:
            if not os.path.lexists(self.path):
                return Change([], again)
            try:
                self._file = open_regular(self._caller, self.path)
            except FileNotFoundError:  # it was renamed a moment ago
                return Change([], again)
        steps: list[int] = []
        while block := self._file.read(_BLOCK):
            self._add(block, steps)
        return Change(steps, again)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def run(self) -> RunFiles:
        """Return the run as it is now."""
        return run_of(self._name, self.path, self.rows)

    def age(self) -> float | None:
        """Return the seconds since the file was written; `None` without a file."""
        with contextlib.suppress(OSError):
            return max(0.0, time.time() - self.path.stat().st_mtime)
        return None

    def _same(self) -> bool:
        """Tell whether the open file is still the one of this name, and not shorter than what was read."""
        try:
            now, held = os.stat(self.path), os.fstat(self._file.fileno())
        except OSError:
            return False
        return (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino) and now.st_size >= self._file.tell()

    def _add(self, block: bytes, steps: list[int]) -> None:
        *lines, rest = (self._rest + block).split(b"\n")
        for line in lines:
            if self._skipping:
                self._skipping = False
            elif self.rows.add(line):
                steps.append(int(self.rows.rows[-1]["step"]))
        if len(rest) > LONGEST and not self._skipping:
            self.rows.skipped += 1
            self._skipping = True
        self._rest = b"" if self._skipping else rest
