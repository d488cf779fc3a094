"""The output of commands: JSON, errors in one line, and numbers in words."""

import importlib
import json
import math
import sys
from typing import Any

from purestep._core.escaping import printable


def need_tables(command: str) -> Any:
    """Return the module that prints tables; if rich is missing, print an error and return `None`."""
    try:
        return importlib.import_module("purestep.cli.core.tables")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("purestep"):
            raise
        fail(command, f"{error.name} is not installed; pip install 'purestep[cli]', or use --json")
        return None


def fail(command: str, message: str | Exception) -> None:
    """Print an error to stderr in one line that begins with the command.

    Args:
        command: the name of the command.
        message: a sentence or an exception.
    """
    text = worded(message) if isinstance(message, Exception) else message
    named = text.startswith((f"{command}: ", f"{command}."))
    print(printable(text if named else f"{command}: {text}"), file=sys.stderr)


def interrupted(command: str, message: str) -> None:
    """Print what an interruption ended; on a terminal, below the line that shows ^C."""
    if sys.stderr.isatty():
        print(file=sys.stderr)
    fail(command, message)


def worded(error: Exception) -> str:
    """Return the message of an error; that of the system without its number.

    >>> worded(FileNotFoundError(2, "No such file or directory", "text"))
    "No such file or directory: 'text'"
    """
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror + ("" if error.filename is None else f": {error.filename!r}")


def print_json(value: Any) -> None:
    """Print one JSON value. NaN and infinities, which JSON lacks, become strings such as `"nan"`."""
    print(json.dumps(_plain(value), indent=1, allow_nan=False))


def number(value: float) -> str:
    """Return a number in at most ten characters."""
    return f"{value:.4g}"


def size(count: float) -> str:
    """Return a number of bytes with a unit.

    >>> size(999), size(2_500_000)
    ('999 B', '2.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def counted(count: int, word: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "array"), counted(2, "array")
    ('1 array', '2 arrays')
    """
    return f"{count} {word}" + ("" if count == 1 else "s")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {
            name: _plain(child)
            for name, child in zip(value._fields, value, strict=True)  # type: ignore[attr-defined]
        }
    if isinstance(value, (list, tuple)):
        return [_plain(child) for child in value]
    return value
