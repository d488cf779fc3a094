"""Read the header of a safetensors file and check it against the length of the file.

    8 bytes             the length of the header, little-endian
    the header          JSON: {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, ...}
    the arrays' bytes   without gaps

The reader of the safetensors package is not used, because it needs numpy.
"""

import json
import os
import re
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from purestep._checkpoint.format import scan
from purestep._checkpoint.format.header import CorruptError, kind_of, reading
from purestep._checkpoint.format.kinds import nbytes
from purestep._checkpoint.format.scan import ScanError
from purestep._checkpoint.format.specs import Leaves
from purestep._core import tree

_LONGEST = 100_000_000  # bytes of a header, the format's own limit
_ENTRY = 8192  # bytes that describe an array
_MOST = 4096  # names in the metadata
_METADATA = "__metadata__"
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "C64": "complex64",
    "F8_E4M3": "uint8",  # as MLX reads it: the bytes
}
NAMES = {dtype: name for name, dtype in reversed(_DTYPES.items())}  # in the format, of MLX's dtypes
# Dtypes of the format that MLX cannot read.
_UNREADABLE = {"F64", "F8_E5M2", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4"}
_KNOWN = {name.encode(): name for name in [*_DTYPES, *_UNREADABLE]}
# The forms in which MLX and the safetensors package describe an array; other forms are parsed as JSON.
_WHOLE = rb"(?:0|[1-9][0-9]{0,18})"
_PARTS = (
    rb'"data_offsets":\[(?P<start>' + _WHOLE + rb"),(?P<stop>" + _WHOLE + rb")\]",
    rb'"dtype":"(?P<dtype>[0-9A-Z_]{1,20})"',
    rb'"shape":\[(?P<shape>(?:' + _WHOLE + rb"(?:," + _WHOLE + rb")*)?)\]",
)
_FORMS = [
    re.compile(rb"\{" + b",".join(_PARTS[place] for place in order) + rb"\}")
    for order in ((0, 1, 2), (1, 2, 0))
]


class SafetensorsHeader(NamedTuple):
    """The metadata of a safetensors file, and the dtype and shape of each array by name.

    A dtype that MLX cannot read has its name in the format, such as `F64`.
    """

    metadata: dict[str, str]
    leaves: Leaves


def read_safetensors_header(caller: str, path: Path) -> SafetensorsHeader:
    """Read the header of a safetensors file.

    Raises:
        CorruptError: if it is missing, cut, or not a safetensors file.
    """
    with _named(caller, path):
        text, size = _text(caller, path)
        found = _checked(text, size)
        leaves = {
            name: tree.ArraySpec(_DTYPES.get(dtype, dtype), shape)
            for name, dtype, shape, *_ in _entries(text)
        }
        del text  # before the metadata is decoded, since the header may be most of the memory
        return SafetensorsHeader(_decoded(found), leaves)


def metadata_of(caller: str, path: Path) -> tuple[dict[str, bytes | bytearray], int]:
    """Return the metadata of a safetensors file, in UTF-8, and the number of bytes of its arrays.

    Errors are those of `read_safetensors_header`.
    """
    with _named(caller, path):
        text, size = _text(caller, path)
        return _checked(text, size), size


def check_array_names(caller: str, path: Path, names: Collection[str]) -> None:
    """Refuse a file whose arrays do not have exactly these names. Other errors are those of reading."""
    with _named(caller, path):
        text, size = _text(caller, path)
        try:
            _checked(text, size, names)
        except _OthersError:
            raise CorruptError(
                f"{caller}: {path} is damaged: its arrays are not those its header names"
            ) from None


class _MalformedError(Exception):
    """A header breaks a rule of the format."""


class _OthersError(Exception):
    """A sound header names other arrays than those that are wanted."""


@contextmanager
def _named(caller: str, path: Path) -> Iterator[None]:
    try:
        yield
    except CorruptError:
        raise
    except (_MalformedError, ScanError) as error:
        raise CorruptError(f"{caller}: {path} is cut or not a safetensors file ({error})") from None
    except (ValueError, RecursionError):
        raise CorruptError(f"{caller}: {path} is cut or not a safetensors file (no JSON)") from None


def _text(caller: str, path: Path) -> tuple[bytes, int]:
    """Return the header and the number of bytes behind it."""
    if kind_of(caller, path) != "file":
        raise CorruptError(f"{caller}: {path} is missing")
    with reading(caller, path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 2 <= length <= min(size - 8, _LONGEST) else b""
    if len(text) < 2:
        raise _MalformedError("its length does not fit")
    return text, size - 8 - length


def _checked(text: bytes, size: int, wanted: Collection[str] | None = None) -> dict[str, bytes | bytearray]:
    """Check a header against the rules of the format, and its names if some are wanted; return the metadata.

    The metadata is in UTF-8. The check stores 24 bytes for an array, whose description takes at least fifty.
    """
    try:
        return _swept(text, size, wanted)
    except (_MalformedError, ValueError, RecursionError) as error:
        error.__traceback__ = None  # Its frames hold what was found so far.
        # A fault of the whole text is named before one of an array that stands earlier.
        seen = False
        for name, start, stop in scan.members(text, 0, len(text)):
            if name == _METADATA:
                if seen:
                    raise _MalformedError("a name occurs twice") from None
                _metadata(text, start, stop)
                seen = True
        raise


def _swept(text: bytes, size: int, wanted: Collection[str] | None) -> dict[str, bytes | bytearray]:
    """Check a header in one pass."""
    metadata: dict[str, bytes | bytearray] | None = None
    names, starts, stops, empty = array("q"), array("Q"), array("Q"), array("Q")
    count = 0
    for name, first, last in scan.members(text, 0, len(text)):
        if name == _METADATA:
            if metadata is not None:
                raise _MalformedError("a name occurs twice")
            metadata = _metadata(text, first, last)
            continue
        dtype, shape, start, stop = _described(text, name, first, last)
        if wanted is not None:  # no name occurs twice
            count += 1 if name in wanted else len(wanted) + 1
        if not 0 <= start <= stop <= size or stop - start != _size(dtype, shape, stop - start):
            raise _MalformedError(f"the bytes of {name[:100]!r} are not where they should be")
        names.append(hash(name))
        if start == stop:
            empty.append(start)
        else:
            starts.append(start)
            stops.append(stop)
    if not scan.distinct(names):
        raise _MalformedError("a name occurs twice")
    # At each place but the first and the last as many arrays begin as end, so there are no gaps.
    del names
    starts.append(size)
    stops.append(0)
    starts = array("Q", sorted(starts))
    stops = array("Q", sorted(stops))
    if starts != stops:
        raise _MalformedError("its arrays do not lie end to end over all of its bytes")
    if any(starts[bisect_left(starts, place)] != place for place in empty if place):
        raise _MalformedError("the place of an empty array lies within another")
    if wanted is not None and count != len(wanted):
        raise _OthersError
    return metadata or {}


def _metadata(text: bytes, start: int, stop: int) -> dict[str, bytes | bytearray]:
    found: dict[str, bytes | bytearray] = {}
    if text[start:stop] == b"null":  # as MLX writes none
        return found
    for name, first, last in scan.members(text, start, stop):
        if text[first] != 0x22 or name in found or len(found) == _MOST:
            raise _MalformedError("its metadata is not text, or a name occurs twice")
        found[name] = scan.utf8(text, first, last)
    return found


def _decoded(metadata: dict[str, bytes | bytearray]) -> dict[str, str]:
    return {name: scan.text(metadata.pop(name)) for name in list(metadata)}


def _entries(text: bytes) -> Iterator[tuple[str, str, tuple[int, ...], int, int]]:
    for name, start, stop in scan.members(text, 0, len(text)):
        if name != _METADATA:
            yield name, *_described(text, name, start, stop)


def _described(text: bytes, name: str, start: int, stop: int) -> tuple[str, tuple[int, ...], int, int]:
    """Return the dtype and the shape of an array, and where its bytes start and stop."""
    if stop - start > _ENTRY:
        raise _MalformedError(f"{name[:100]!r} is not described as an array")
    for form in _FORMS:
        found = form.fullmatch(text, start, stop)
        if found and found["dtype"] in _KNOWN:
            shape = tuple(map(int, found["shape"].split(b","))) if found["shape"] else ()
            return _KNOWN[found["dtype"]], shape, int(found["start"]), int(found["stop"])
    return _entry(name, json.loads(text[start:stop].decode(), object_pairs_hook=_object))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _MalformedError("a name occurs twice")
    return found


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)]} if (
            dtype in _DTYPES or dtype in _UNREADABLE
        ) and all(type(n) is int and n >= 0 for n in shape):
            return dtype, tuple(shape), start, stop
    raise _MalformedError(f"{name[:100]!r} is not described as an array")


def _size(dtype: str, shape: tuple[int, ...], found: int) -> int:
    return nbytes(_DTYPES[dtype], shape) if dtype in _DTYPES else found
