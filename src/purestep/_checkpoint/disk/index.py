"""Read the index of a divided state, `model.safetensors.index.json`, without parsing it as a whole.

{"metadata": {"total_size": 8}, "weight_map": {"w": "model-00001-of-00002.safetensors", ...}}
"""

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from purestep._checkpoint.disk.naming import check_file_names
from purestep._checkpoint.format import scan
from purestep._checkpoint.format.header import CorruptError, kind_of, read_text
from purestep._checkpoint.format.scan import ScanError

_LONGEST = 2000  # bytes of a file's name
_MOST = 4096  # names in the metadata
_NO_JSON = (b"NaN", b"Infinity", b"-Infinity")  # which Python's json reads


class Index(NamedTuple):
    """The content of an index.

    Attributes:
        header: the sealed text, in UTF-8; `None` if the index has none.
        size: its `total_size`, as text.
        files: the names of its files.
        arrays: the number of arrays.
        characters: the number of characters of all names of arrays.
        text: the whole index.
    """

    header: bytes | bytearray | None
    size: bytes
    files: list[str]
    arrays: int
    characters: int
    text: bytes

    def placed(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each array and its file."""
        names = {name: name for name in self.files}
        return ((key, names[name]) for key, name in _placed(self.text))


def read_index(caller: str, path: Path, key: str, *, lenient: bool = False) -> Index:
    """Read an index, with the entry of its metadata under a key.

    Args:
        caller: the public name that the user called.
        path: of the index.
        key: of the metadata.
        lenient: accept that files are missing.

    Raises:
        CorruptError: if it is not an index, or one of its files is missing.
        ValueError: if it names a file outside of its directory.
    """
    text = read_text(caller, path)
    header: bytes | bytearray | None = None
    size = b""
    files: dict[str, None] = {}
    hashes, characters = array("q"), 0
    named: set[str] = set()
    try:
        for name, start, stop in _object(text, "metadata"):
            if name in named:
                raise ScanError(f"{name[:100]!r} occurs twice in its metadata")
            if text[start:stop] in _NO_JSON:
                raise ScanError(f"its {name[:100]!r} is {text[start:stop].decode()}, which is not JSON")
            named.add(name)
            if name == "total_size":
                size = text[start : min(stop, start + 40)]
            if name == key:
                if text[start] != 0x22:
                    raise CorruptError(f"{caller}: {path} was not written by purestep.checkpoint")
                header = scan.utf8(text, start, stop)
        for name, file in _placed(text):
            hashes.append(hash(name))
            characters += len(name)
            if file not in files:
                check_file_names(caller, path, [file])
                if not lenient and kind_of(caller, path.parent / file) != "file":
                    raise CorruptError(f"{caller}: {path.parent / file} is missing")
                files[file] = None
        if not scan.distinct(hashes):
            raise ScanError("a name occurs twice")
    except ScanError as error:
        raise CorruptError(
            f"{caller}: {path} is damaged: it is not an index of safetensors files ({error})"
        ) from None
    return Index(header, size, list(files), len(hashes), characters, text)


def _placed(text: bytes) -> Iterator[tuple[str, str]]:
    for name, start, stop in _object(text, "weight_map"):
        if text[start] != 0x22 or stop - start > _LONGEST:
            raise ScanError("an array is in no file")
        yield name, scan.string(text, start, stop)


def _object(text: bytes, wanted: str) -> Iterator[tuple[str, int, int]]:
    """Yield the members of one of the two objects of an index. Only `metadata` may be missing."""
    start = len(text) - len(text.lstrip())
    found: tuple[int, int] | None = None
    for name, first, last in scan.members(text, start, len(text)):
        if name == wanted:
            if found:
                raise ScanError(f"it has two members {wanted}")
            found = first, last
    if wanted == "metadata" and (not found or text[found[0] : found[0] + 1] == b"n"):
        return
    if not found:
        raise ScanError(f"it has no {wanted}")
    for number, member in enumerate(scan.members(text, *found)):
        if wanted == "metadata" and number == _MOST:
            raise ScanError("its metadata has too many names")
        yield member
