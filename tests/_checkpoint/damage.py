"""Damage to files, and calls that fail."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


def flip(path: Path, offset: int = -1) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def raising(error: Exception) -> Callable[..., NoReturn]:
    """Return a function that raises the error, whatever it is called with."""

    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    return fail
