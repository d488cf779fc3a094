"""Files of a checkpoint: their texts, their headers, and whether they are what they should be."""

from pathlib import Path

from purestep._checkpoint.disk import atomic
from purestep._checkpoint.format.header import CorruptError, kind_of, naming, reading
from purestep._checkpoint.format.names import SUFFIX


def unsummed(path: Path) -> bytes:
    """Return the bytes without array checksums: the header of a file with arrays, or the whole file."""
    with naming(path), path.open("rb") as file:
        if path.suffix != SUFFIX:
            return file.read()
        start = file.read(8)
        # A damaged length reads no more than the file holds.
        return start + file.read(min(int.from_bytes(start, "little"), path.stat().st_size))


def check_plain(caller: str, path: Path, directory: bool = False) -> None:
    """Refuse a path without a file, or without a directory, and symbolic links."""
    with reading(caller, path):
        linked = path.is_symlink()
    if linked:
        raise CorruptError(
            f"{caller}: {path} is a symbolic link: checkpoints hold none, copy what it points to"
        )
    found = kind_of(caller, path)
    if found != ("directory" if directory else "file"):
        kind = "a file, not a directory" if directory else "not a file"
        there = f": what is there is {kind}" if found else ""
        raise CorruptError(f"{caller}: {path} is missing{there}")


def write_text(path: Path, text: str) -> None:
    """Write a file of text in a hidden directory and wait until it is on the disk."""
    with naming(path):
        path.write_text(text, encoding="utf-8")
    atomic.flush(path)
