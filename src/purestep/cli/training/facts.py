"""The content of the data files in numbers, by which a resumed run knows its data."""

import json
import os
import stat
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from purestep._core import checks
from purestep._data.text.examples import Example
from purestep.cli.training.settings import CALLER

_FACTS = "data.json"


def content(name: str, path: str) -> dict[str, int]:
    """Return the size and a checksum of a regular file.

    Raises:
        ValueError: if the file is empty, a directory or a device.
        OSError: if it cannot be read.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = "directory" if stat.S_ISDIR(status.st_mode) else "pipe or a device"
        raise checks.error(CALLER, f"{name} must be a file, {path} is a {kind}")
    size = crc = 0
    with open(path, "rb") as file:
        while part := file.read(1 << 22):
            crc, size = zlib.crc32(part, crc), size + len(part)
    if not size:
        raise checks.error(CALLER, f"{name} must not be empty, {path} is")
    return {"bytes": size, "crc32": crc}


def tokens(examples: Iterable[Example]) -> int:
    """Return a checksum of the tokens and masks of examples."""
    crc = 0
    for example in examples:
        crc = zlib.crc32(bytes(example.mask), zlib.crc32(memoryview(example.tokens).cast("B"), crc))  # type: ignore[arg-type]
    return crc


def check_same_data(begun: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to resume a run with other files, or with a tokenizer that gives other tokens."""
    for name in ("data", "validation"):
        if begun.get(name) != now.get(name):
            was = begun.get(name, {})
            raise checks.error(
                CALLER,
                f"{name} must be the file that the run began with, of {was.get('bytes', '?')} bytes: its "
                "content has changed",
            )
    if begun.get("tokens") != now.get("tokens"):
        raise checks.error(CALLER, "tokenizer must give the tokens that the run began with: it has changed")


def read_facts(directory: Path) -> dict[str, Any]:
    """Return the facts of the data that a run began with."""
    path = directory / _FACTS
    try:
        facts = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise checks.error(CALLER, f"{path} is damaged: it must hold a JSON object")
    return facts


def write_facts(directory: Path, facts: dict[str, Any]) -> None:
    """Write the facts of the data."""
    (directory / _FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")
