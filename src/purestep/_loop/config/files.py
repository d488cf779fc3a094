"""Tables of plain values in TOML and JSON files, and as text."""

import json
import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from purestep._core import checks

_LARGEST = 1_000_000  # bytes of a configuration


class _TwiceError(ValueError):
    """A JSON object holds a name twice."""


def read_toml(caller: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the table of a TOML file.

    Raises:
        ValueError: if the file is not TOML; with the line.
        OSError: if the file cannot be read.
    """
    text = _read(caller, path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also for integers of too many digits
        raise checks.error(caller, f"{os.fspath(path)} must be TOML: {_first_line(error)}") from None


def read_json(caller: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        ValueError: if the file is not JSON or holds another value than an object, or a name twice.
        OSError: if the file cannot be read.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise _TwiceError(f"got {twice!r} twice")
        return table

    text = _read(caller, path)
    try:
        value = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        if isinstance(error, _TwiceError):
            raise checks.error(caller, f"{os.fspath(path)} must hold each name once, {error}") from None
        raise checks.error(caller, f"{os.fspath(path)} must be JSON: {_first_line(error)}") from None
    if not isinstance(value, dict):
        raise checks.error(caller, f"{os.fspath(path)} must hold an object, got {type(value).__name__}")
    return value


def toml(table: Mapping[str, Any]) -> str:
    r"""Return a table as TOML. A value of `None` is left out: TOML has no such value.

    Args:
        table: Booleans, integers, floats, texts, and lists and tables of these.

    >>> print(toml({"seed": 1, "name": "a\n", "sizes": {"width": 8}}), end="")
    seed = 1
    name = "a\n"
    <BLANKLINE>
    [sizes]
    width = 8
    """
    plain = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{_key(name)} = {_value(value)}\n" for name, value in plain.items() if value is not None]
    for name, value in table.items():
        if isinstance(value, Mapping):
            lines.append(f"\n[{_key(name)}]\n{toml(value)}")
    return "".join(lines)


def _read(caller: str, path: str | os.PathLike[str]) -> str:
    """Return the text of a small regular file. A pipe is refused: opening it could wait for ever."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{caller}: path must be a path, got {checks.shown(path):.80}")
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise checks.error(caller, f"path must be a file, {os.fspath(path)} is not")
    with open(path, "rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise checks.error(caller, f"path must have at most {_LARGEST:,} bytes, {os.fspath(path)} has more")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise checks.error(
            caller, f"path must be UTF-8 text, {os.fspath(path)} is not, from byte {error.start} on"
        ) from None


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, str):
        # JSON's escapes are TOML's, but TOML also wants DEL escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)


def _first_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).splitlines()[0]
