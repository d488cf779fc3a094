"""What every stored state says of itself, sealed: the format's version, a digest, and plain content.

    {"format":2,"digest":"xxh3_128:...",
    "content":{...}}

The format and the digest stand first and are checked before anything else is parsed.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from purestep.checkpoint import checksum

FORMAT = 2

_SEAL = re.compile(r'\{"format":(\d{1,9}),"digest":"([0-9a-z_:]{1,80})",\n"content":(\{.*\})\}', re.DOTALL)


class CorruptError(ValueError):
    """A stored state is not what was written: cut, flipped, swapped, or from elsewhere."""


@contextmanager
def reading(where: str, path: Path) -> Iterator[None]:
    """Turn what the system says when a file cannot be read into a `CorruptError` that names it.

    >>> with reading("load", Path("file")):
    ...     raise OSError(5, "Input/output error")
    Traceback (most recent call last):
    purestep.checkpoint.header.CorruptError: load: file cannot be read (Input/output error)
    """
    try:
        yield
    except OSError as error:
        raise CorruptError(f"{where}: {path} cannot be read ({error.strerror or error})") from None


def seal(content: dict[str, Any]) -> str:
    """Turn plain content into JSON text that says its format and carries its own digest.

    >>> unseal("load", "file", seal({"step": 3}))
    {'step': 3}
    """
    body = json.dumps(content, separators=(",", ":"))
    return f'{{"format":{FORMAT},"digest":"{checksum.of(body.encode())}",\n"content":{body}}}'


def unseal(where: str, source: str, text: Any) -> dict[str, Any]:
    """Return the content of a sealed text.

    Raises:
        CorruptError: if it was not written by purestep, or is not as it was written.
        ValueError: if another version of purestep wrote it, or its checksum cannot be computed here.
    """
    if not isinstance(text, str) or not text.startswith('{"format":'):
        raise CorruptError(f"{where}: {source} was not written by purestep.checkpoint")
    found = _SEAL.fullmatch(text)
    if not found:
        raise CorruptError(f"{where}: {source} is damaged: its header is cut or changed")
    version = int(found[1])
    if version != FORMAT:
        age = "a newer purestep wrote it: upgrade" if version > FORMAT else "use the purestep that wrote it"
        raise ValueError(f"{where}: {source} has format {version}, this purestep reads {FORMAT}: {age}")
    if not verified(where, source, found[2], found[3].encode()):
        raise CorruptError(f"{where}: {source} is damaged: its header does not have the digest it names")
    try:
        return json.loads(found[3])
    except (ValueError, RecursionError):
        raise CorruptError(f"{where}: {source} is damaged: its header is not JSON") from None


def sealed(text: str) -> bool:
    """Tell whether JSON text holds a sealed text, under whatever name.

    >>> sealed(json.dumps({"pure5tep": seal({"step": 3})})), sealed('{"format": "pt"}')
    (True, False)
    """
    return r"{\"format\":" in text


def verified(where: str, source: str, expected: str, data: Any) -> bool:
    """Tell whether data has a checksum; refuse, as no corruption, an algorithm that is not installed."""
    try:
        return checksum.matches(expected, data)
    except LookupError as error:
        raise ValueError(f"{where}: {source} cannot be verified: {error.args[0]}") from None
