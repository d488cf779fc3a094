"""How rank 0 learns, through the directory that is being written, what the other ranks have written.

The background threads of ranks must not use MLX's collectives, which the steps use at the same time.
"""

import fcntl
import io
import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk.plain import write_text
from purestep._checkpoint.format import names
from purestep._checkpoint.ranks import shared

_PATIENCE = 300.0  # seconds in which nothing is written, after which rank 0 gives up


class Presence:
    """A locked file of one rank in a hidden directory. The system unlocks it when the process ends."""

    def __init__(self, caller: str, hidden: Path, rank: int):
        shared.await_visible(caller, hidden.parent, hidden.is_dir)
        path = hidden / names.presence(rank)
        try:
            self._file: io.FileIO | None = io.FileIO(path, "x")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{caller}: {hidden.parent} cannot be written by rank {rank} ({error.strerror}): every rank "
                "of a sharded state writes there",
            ) from None

    def release(self) -> None:
        """Unlock the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def write(hidden: Path, rank: int, content: dict[str, Any]) -> None:
    """Write the receipt of a rank, complete or absent; rank 0 may have removed the directory."""
    path = hidden / names.receipt(rank)
    temporary = path.with_suffix(".tmp")
    write_text(temporary, json.dumps(content))
    temporary.rename(path)


def of_error(error: Exception) -> dict[str, Any]:
    """Return the receipt of a rank that could not write its part."""
    if not isinstance(error, OSError):
        return {"error": repr(error), "system": False, "errno": None}
    text = str(error.strerror or error) + (f": {os.fspath(error.filename)}" if error.filename else "")
    return {"error": text, "system": True, "errno": error.errno}


def collect(hidden: Path, ranks: Collection[int]) -> dict[int, dict[str, Any]]:
    """Wait until all of these ranks have finished, remove their receipts, and return the contents.

    Raises:
        OSError, RuntimeError: if a rank could not write its part, has ended, or writes nothing for a long
            time.
    """
    found: dict[int, dict[str, Any]] = {}
    size, changed, pause = -1, time.monotonic(), shared.PAUSES[0]
    while True:
        for rank in ranks:
            if rank not in found:
                content = _receipt(hidden, rank)
                if content is not None:
                    found[rank] = content
        if len(found) == len(ranks):
            break
        written = sum(map(_size, hidden.iterdir()))
        if written != size:
            size, changed = written, time.monotonic()
        missing = [rank for rank in ranks if rank not in found]
        if time.monotonic() - changed > _PATIENCE:
            raise OSError(f"rank {missing[0]} has written nothing for {_PATIENCE:.0f} s")
        time.sleep(pause)
        pause = min(2 * pause, shared.PAUSES[1])
    for rank, content in found.items():
        if "error" in content:
            text = f"rank {rank}: {content['error']}"
            if not content["system"]:
                raise RuntimeError(text)
            raise OSError(text) if content["errno"] is None else OSError(content["errno"], text)
    for rank in ranks:
        (hidden / names.receipt(rank)).unlink()
        (hidden / names.presence(rank)).unlink()
    return found


def _receipt(hidden: Path, rank: int) -> dict[str, Any] | None:
    """Return the receipt of a rank, or `None` while it writes."""
    ended = _is_unlocked(hidden / names.presence(rank))  # before the look: it is unlocked after the receipt
    path = hidden / names.receipt(rank)
    if path.is_file():
        return json.loads(path.read_text())
    return of_error(OSError("it ended before it had written its part")) if ended else None


def _is_unlocked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, or one that does not show the file yet
        return False
    return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # it has just been renamed
        return 0
