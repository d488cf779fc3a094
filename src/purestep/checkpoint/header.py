"""What every stored state says of itself, sealed: the format's version, a digest, and plain content.

    {"format":2,"digest":"xxh3_128:...",
    "content":{...}}

The format and the digest stand first and are checked before anything else is parsed.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from purestep.checkpoint import checksum

FORMAT = 2

_SEAL = re.compile(r'\{"format":(\d{1,9}),"digest":"([0-9a-z_:]{1,80})",\n"content":(\{.*\})\}', re.DOTALL)


# What the system says when the file itself is at fault: it is no file, or the file system has read bytes
# that do not have its own checksum. EIO says less: a disk or a network that fails now may be back later.
_FILE_AT_FAULT = {
    errno.EBADMSG,
    getattr(errno, "EUCLEAN", errno.EBADMSG),
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
}


class CorruptError(ValueError):
    """A stored state is not what was written: cut, flipped, swapped, or from elsewhere."""


@contextmanager
def reading(where: str, path: Path) -> Iterator[None]:
    """Name the file that cannot be read, in a `CorruptError` where it is itself at fault.

    Any other error, such as too many open files, a missing permission or a device that does not answer,
    does not mean that the file is damaged: it stays an `OSError`, and no other checkpoint is restored
    instead. Only bytes that were read and are wrong are damage.

    >>> with reading("load", Path("file")):
    ...     raise OSError(21, "Is a directory")
    Traceback (most recent call last):
    purestep.checkpoint.header.CorruptError: load: file cannot be read (Is a directory)
    >>> with reading("load", Path("file")):
    ...     raise OSError(5, "Input/output error")
    Traceback (most recent call last):
    OSError: [Errno 5] load: file cannot be read (Input/output error)
    """
    try:
        yield
    except OSError as error:
        message = f"{where}: {path} cannot be read ({error.strerror or error})"
        if error.errno in _FILE_AT_FAULT:
            raise CorruptError(message) from None
        raise (OSError(message) if error.errno is None else OSError(error.errno, message)) from None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give the system's errors about an open file, which name none, the file's name.

    >>> with naming(Path("file")):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    OSError: [Errno 28] No space left on device: 'file'
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def kind_of(where: str, path: Path, *, follow: bool = True) -> str:
    """Return `file`, `directory` or `other` for what is at a path, or the empty string for nothing.

    `Path.is_file` and its like answer no, in some versions of Python, when the system could not look.

    Raises:
        OSError: if the system could not look.
    """
    try:
        mode = os.stat(path, follow_symlinks=follow).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "other"
        shown = f"{where}: {path}" if where else f"{path}"
        raise OSError(error.errno, f"{shown} cannot be read ({error.strerror})") from None
    return "file" if stat.S_ISREG(mode) else "directory" if stat.S_ISDIR(mode) else "other"


def problem(where: str, error: Exception) -> str:
    """Return what is wrong with a stored state, as a line of a list."""
    said = error.strerror if isinstance(error, OSError) else None
    return (said or str(error)).removeprefix(f"{where}: ")


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
