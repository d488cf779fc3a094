"""What a safetensors file says that it holds: read from its header, checked against its length.

    8 bytes             the length of the header, little-endian
    the header          JSON: {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, ...}
    the arrays' bytes   without gaps

Here rather than by the safetensors package, whose reader needs numpy.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from purestep.checkpoint.header import CorruptError, kind_of, reading
from purestep.checkpoint.specs import Leaves, nbytes

_LONGEST = 100_000_000  # bytes of a header, the format's own limit
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
# Others that the format has, and MLX cannot read.
_UNREADABLE = {"F64", "F8_E5M2", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4"}


class Contents(NamedTuple):
    """What a safetensors file holds: its metadata, and dtype and shape of each array by name.

    A dtype that MLX does not read has the format's name, such as `F64`.
    """

    metadata: dict[str, str]
    leaves: Leaves


def contents(where: str, path: Path) -> Contents:
    """Read the header of a safetensors file.

    Raises:
        CorruptError: if it is missing, cut, or no safetensors file.
    """
    if kind_of(where, path) != "file":
        raise CorruptError(f"{where}: {path} is missing")
    with reading(where, path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 2 <= length <= min(size - 8, _LONGEST) else b""
    try:
        if len(text) < 2:
            raise _MalformedError("its length does not fit")
        return _parsed(text, size - 8 - length)
    except _MalformedError as error:
        raise CorruptError(f"{where}: {path} is cut or not a safetensors file ({error})") from None
    except (ValueError, RecursionError):
        raise CorruptError(f"{where}: {path} is cut or not a safetensors file (no JSON)") from None


class _MalformedError(Exception):
    """A header breaks a rule of the format."""


def _parsed(text: bytes, size: int) -> Contents:
    header = json.loads(text.decode(), object_pairs_hook=_object)
    if text[:1] != b"{" or type(header) is not dict:
        raise _MalformedError("no object")
    metadata = header.pop("__metadata__", None) or {}  # MLX writes null for none
    if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
        raise _MalformedError("its metadata is not text")
    entries = [(name, *_entry(name, entry)) for name, entry in header.items()]
    end = 0
    for name, dtype, shape, start, stop in sorted(entries, key=lambda entry: entry[3:]):
        if start != end or stop - start != _size(dtype, shape, stop - start):
            raise _MalformedError(f"the bytes of {name[:100]!r} are not where they should be")
        end = stop
    if end != size:
        raise _MalformedError(f"{size} bytes of arrays, {end} were written")
    return Contents(
        metadata, {name: (_DTYPES.get(dtype, dtype), shape) for name, dtype, shape, *_ in entries}
    )


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
