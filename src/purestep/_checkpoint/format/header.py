"""The sealed header of every stored state: format version, digest and content.

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
from typing import Any, NamedTuple

from purestep._checkpoint.format import checksum, outline, scan
from purestep._checkpoint.format.scan import ScanError, Text

FORMAT = 2
PIECES = 3  # the format of a state that has arrays in pieces
MARKS = ('{"format":', '"digest":', '"checksums":{')  # a damaged sealed text still has some of these

_LARGEST = 1_000_000_000  # bytes of a manifest or an index
_MEMBERS = 32  # of a content

_SEAL = re.compile(rb'\{"format":(\d{1,9}),"digest":"([0-9a-z_:]{1,80})",\n"content":')
_SUM = rb'"[0-9A-Za-z_:]{0,80}"'
_SUMMED = re.compile(_SUM)
_PLACED = re.compile(rb'\["([^"]{1,1500})",(' + scan.STRING + rb")," + _SUM + rb"\]")
_VALUES = 16  # for each array
_PLAIN = {"step", "serial", "time", "metrics", "metadata", "versions", "files", "pieces"}

# Errors that mean a damaged file: it is not a regular file, or the checksum of the file system is wrong.
# EIO is not among them: a disk or network that fails now may work later.
_FILE_AT_FAULT = {
    errno.EBADMSG,
    getattr(errno, "EUCLEAN", errno.EBADMSG),
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
}


class CorruptError(ValueError):
    """A stored state is damaged: cut, changed, mixed with another state, or not written by purestep."""


@contextmanager
def reading(caller: str, path: Path) -> Iterator[None]:
    """Add the file's name to read errors; raise `CorruptError` if the file itself is damaged.

    Other errors, such as too many open files, a missing permission or a device that does not answer, do not
    mean damage: they stay an `OSError`, and no other checkpoint is restored instead.

    >>> with reading("load", Path("file")):
    ...     raise OSError(21, "Is a directory")
    Traceback (most recent call last):
    purestep._checkpoint.format.header.CorruptError: load: file cannot be read (Is a directory)
    >>> with reading("load", Path("file")):
    ...     raise OSError(5, "Input/output error")
    Traceback (most recent call last):
    OSError: [Errno 5] load: file cannot be read (Input/output error)
    """
    try:
        yield
    except OSError as error:
        message = f"{caller}: {path} cannot be read ({error.strerror or error})"
        if error.errno in _FILE_AT_FAULT:
            raise CorruptError(message) from None
        raise (OSError(message) if error.errno is None else OSError(error.errno, message)) from None


def read_text(caller: str, path: Path) -> bytes:
    """Return a whole file of JSON text; refuse one that is too large before it is read."""
    with reading(caller, path):
        size = path.stat().st_size
        if size <= _LARGEST:
            return path.read_bytes()
    raise CorruptError(f"{caller}: {path} is damaged: it has {size} bytes, at most {_LARGEST} are read")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to errors of the system that have none.

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


def kind_of(caller: str, path: Path, *, follow: bool = True) -> str:
    """Return `file`, `directory` or `other` for what is at a path, or an empty string if it does not exist.

    In some versions of Python, `Path.is_file` returns false if the system could not check.

    Raises:
        OSError: if the system could not check.
    """
    try:
        mode = os.stat(path, follow_symlinks=follow).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "other"
        shown = f"{caller}: {path}" if caller else f"{path}"
        raise OSError(error.errno, f"{shown} cannot be read ({error.strerror})") from None
    return "file" if stat.S_ISREG(mode) else "directory" if stat.S_ISDIR(mode) else "other"


def problem(caller: str, error: Exception) -> str:
    """Return the message of an error as one line of a list."""
    said = error.strerror if isinstance(error, OSError) else None
    return (said or str(error)).removeprefix(f"{caller}: ")


def seal(content: dict[str, Any]) -> str:
    """Return plain content as JSON text with its format version and digest.

    >>> unseal("load", "file", seal({"step": 3}))
    {'step': 3}
    """
    body = json.dumps(content, separators=(",", ":"))
    version = PIECES if "pieces" in content else FORMAT
    return f'{{"format":{version},"digest":"{checksum.of(body.encode())}",\n"content":{body}}}'


class SealedText(NamedTuple):
    """A sealed text with a correct digest. Its content is not checked yet.

    Attributes:
        text: all of it.
        members: where the value of each member of the content starts and stops.
    """

    text: Text
    members: dict[str, tuple[int, int]]


def unseal(
    caller: str,
    source: str,
    text: Any,
    *,
    size: int | None = None,
    names: tuple[int, int] | None = None,
    only: str | None = None,
) -> dict[str, Any]:
    """Return the content of a sealed text. The text is checked before objects are made from it.

    Args:
        caller: the public name that the user called.
        source: the name of the text in errors.
        text: a string or bytes.
        size: the bytes of all arrays, where they are known.
        names: how many arrays an index names, and the characters of their names.
        only: the one member that its metadata may have; then the plain values it holds are bounded by the
            number of its arrays. Metadata of others is left out.

    Raises:
        CorruptError: if purestep did not write it, if it was changed afterwards, or if its tree and its
            checksums name different arrays.
        ValueError: if another version of purestep wrote it, or its checksum cannot be computed here.
    """
    found = open_sealed(caller, source, text)
    damaged = f"{caller}: {source} is damaged: "
    named = outline.Extent()
    content: dict[str, Any] = {}
    sums = [name for name in ("checksums", "leaves") if name in found.members]
    if "tree" in found.members:
        named = described(caller, source, found)
        if [_names(found, name) for name in sums] != [named[:2]] or names not in (None, named[:2]):
            raise CorruptError(damaged + "its header does not name the same arrays twice")
        if size not in (None, named.bytes):
            raise CorruptError(
                f"{damaged}its arrays are not those its header names: "
                f"{size} bytes, {named.bytes} were written"
            )
    try:
        plain = _plain(found, sums, named, only)
        if plain is None:
            raise CorruptError(damaged + "its header holds more than it should")
        for name, (start, stop) in found.members.items():
            if name == "tree":
                content[name] = outline.built(found.text, start, stop)
            elif name in plain or name in sums:
                content[name] = json.loads(str(found.text[start:stop], "ascii"))
    except CorruptError:
        raise
    except (ValueError, RecursionError):
        raise CorruptError(damaged + "its header is not JSON") from None
    return content


def open_sealed(caller: str, source: str, text: Any) -> SealedText:
    """Check the format and the digest of a sealed text; errors as of `unseal`."""
    data: Text = text.encode("utf-8", "replace") if isinstance(text, str) else text
    if not isinstance(data, bytes | bytearray | memoryview) or data[:10] != b'{"format":':
        raise CorruptError(f"{caller}: {source} was not written by purestep.checkpoint")
    found = _SEAL.match(data)
    if not found or data[-2:] != b"}}":
        raise CorruptError(f"{caller}: {source} is damaged: its header is cut or changed")
    version = int(found[1])
    if version not in (FORMAT, PIECES):
        age = "a newer purestep wrote it: upgrade" if version > PIECES else "use the purestep that wrote it"
        known = f"{FORMAT} and {PIECES}"
        raise ValueError(f"{caller}: {source} has format {version}, this purestep reads {known}: {age}")
    body = memoryview(data)[found.end() : -1]
    if not verified(caller, source, found[2].decode(), body):
        raise CorruptError(f"{caller}: {source} is damaged: its header does not have the digest it names")
    members: dict[str, tuple[int, int]] = {}
    try:
        for name, start, stop in scan.members(body, 0, len(body)):
            if name in members or len(members) == _MEMBERS:
                raise ScanError(f"{name} occurs twice, or there are too many")
            members[name] = start, stop
    except ScanError:
        raise CorruptError(f"{caller}: {source} is damaged: its header is not JSON") from None
    return SealedText(body, members)


def described(caller: str, source: str, found: SealedText) -> outline.Extent:
    """Return how much the tree of a sealed text names; errors as of `unseal`."""
    try:
        return outline.extent(found.text, *found.members.get("tree", (0, 0)))
    except ScanError:
        wrong = "it does not describe a tree of arrays"
    except LookupError as error:
        wrong = f"{error.args[0] or 'its array'} has an unknown dtype or an invalid shape"
    raise CorruptError(f"{caller}: {source} is damaged: {wrong}")


def _plain(found: SealedText, sums: list[str], named: outline.Extent, only: str | None) -> set[str] | None:
    """Return which plain members are to be read, or `None` if they are larger than they should be."""
    plain = _PLAIN & found.members.keys()
    if only is None:
        return plain
    if "metadata" in plain:
        span = found.members["metadata"]
        if only not in (key for key, *_ in scan.members(found.text, *span)):
            plain.remove("metadata")
    lengths = {name: stop - start for name, (start, stop) in found.members.items()}
    values = sum(scan.count(found.text, *found.members[name]) for name in plain)
    most = (1 << 16) + 2 * sum(lengths.get(name, 0) for name in ("tree", *sums))
    return (
        plain
        if values <= _VALUES * (64 + named.arrays) and sum(map(lengths.__getitem__, plain)) <= most
        else None
    )


def _names(found: SealedText, member: str) -> tuple[int, int] | None:
    """Return how many arrays a member names, and the characters of their paths."""
    arrays = characters = 0
    try:
        for path, start, stop in scan.members(found.text, *found.members[member]):
            if member == "checksums":
                fits = _SUMMED.fullmatch(found.text, start, stop)
            else:
                placed = _PLACED.fullmatch(found.text, start, stop)
                fits = placed and placed.end(2) - placed.start(2) <= 12 * len(path) + 2
            if not fits:
                return None
            arrays += 1
            characters += len(path)
    except ScanError:
        return None
    return arrays, characters


def sealed(text: str) -> bool:
    """Tell whether JSON text holds a sealed text, under whatever name.

    >>> sealed(json.dumps({"pure5tep": seal({"step": 3})})), sealed('{"format": "pt"}')
    (True, False)
    """
    return any(json.dumps(mark)[1:-1] in text for mark in MARKS)


def verified(caller: str, source: str, expected: str, data: Any) -> bool:
    """Tell whether data has a checksum; a missing algorithm is a `ValueError`, not damage."""
    try:
        return checksum.matches(expected, data)
    except LookupError as error:
        raise ValueError(f"{caller}: {source} cannot be verified: {error.args[0]}") from None
