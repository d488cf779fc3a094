"""Checks of paths in arguments and of file names in files."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from purestep._core import checks

_LONGEST = 255  # bytes of a file's name


def check_path(caller: str, path: Any) -> Path:
    """Return a path; refuse a path that MLX cannot open.

    >>> check_path("load", "a\\udcff")
    Traceback (most recent call last):
    ValueError: load: path must be UTF-8, as MLX needs it, got 'a\\udcff'
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str):
        raise TypeError(f"{caller}: path must be a string or a Path, got {checks.shown(path)}")
    if "\0" in text:
        raise checks.error(caller, f"path must have no null character, got {text!a}")
    if not _is_text(text):
        raise checks.error(caller, f"path must be UTF-8, as MLX needs it, got {text!a}")
    return Path(text)


def is_file_name(name: str) -> bool:
    """Tell whether a name is a plain file name, without a directory.

    >>> [is_file_name(name) for name in ("a.json", "../a", "", "\\ud800")]
    [True, False, False, False]
    """
    return (
        name not in ("", "..")
        and Path(name).name == name
        and "\0" not in name
        and _is_text(name)
        and len(name.encode()) <= _LONGEST
    )


def check_file_names(caller: str, source: Path, names: Iterable[str]) -> None:
    """Refuse file names that lead out of the directory of the file that lists them."""
    for name in names:
        if not is_file_name(name):
            raise checks.error(
                caller, f"{source} names {name[:300]!a}, which is not in its directory: do not trust it"
            )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
