"""What the ranks of a group must have in common: the directory and the options."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from purestep._checkpoint.format import names
from purestep._checkpoint.format.header import naming
from purestep._checkpoint.ranks.together import Together
from purestep._core import checks

VISIBLE = 30.0  # seconds in which a network file system must show what another host has written
PAUSES = 0.005, 0.5  # seconds between two looks, first and at most


def check_alike(caller: str, root: Path, options: Mapping[str, Any], ranks: Together) -> None:
    """Refuse options that differ between ranks, and a directory that not all ranks see.

    Args:
        caller: the public name that the user called.
        root: the directory, locked by rank 0.
        options: JSON values by name.
        ranks: that check together.
    """
    checks.equal_on_ranks(caller, ranks.exchange(dict(options)), " of Checkpointer")
    path = root / names.LOCK
    content = ranks.collect(lambda: _text(path) if ranks.rank == 0 else "")[0]
    ranks.agree(lambda: await_visible(caller, root, lambda: _text(path) == content))


def await_visible(caller: str, root: Path, seen: Callable[[], bool]) -> None:
    """Wait until this rank sees what rank 0 has written to a directory.

    Raises:
        FileNotFoundError: if it does not within half a minute.
        PermissionError: if it may not look.
    """
    end, pause = time.monotonic() + VISIBLE, PAUSES[0]
    while not _is_seen(caller, root, seen):
        if time.monotonic() > end:
            raise FileNotFoundError(
                f"{caller}: {root} must be a directory that all ranks share, but this rank does not see what "
                "rank 0 writes there"
            )
        time.sleep(pause)
        pause = min(2 * pause, PAUSES[1])


def _is_seen(caller: str, root: Path, seen: Callable[[], bool]) -> bool:
    try:
        return seen()
    except PermissionError as error:
        raise PermissionError(
            error.errno,
            f"{caller}: {root} must be a directory that all ranks share, but this rank may not read what "
            f"rank 0 writes there ({error.strerror})",
        ) from None
    except OSError:  # the file does not exist yet
        return False


def _text(path: Path) -> str:
    with naming(path):
        return path.read_text(encoding="utf-8", errors="replace")
