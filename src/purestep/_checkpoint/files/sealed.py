"""The sealed header of a state in safetensors files: read from the file or the index, with its tree."""

from pathlib import Path
from typing import Any

import mlx.core as mx

from purestep._checkpoint.disk import reader
from purestep._checkpoint.disk.index import Index
from purestep._checkpoint.format.header import MARKS, CorruptError, sealed, unseal
from purestep._checkpoint.format.names import ECOSYSTEM, KEY, PART
from purestep._checkpoint.format.safetensors_header import metadata_of
from purestep._checkpoint.format.specs import leaf_specs, nbytes
from purestep._checkpoint.restoring.restore import StoredTree


def header_in_file(caller: str, path: Path) -> dict[str, Any] | None:
    """Return the content of the sealed header of a safetensors file, or `None` for a file of another program.

    Raises:
        CorruptError: if the text was changed after it was written.
    """
    found, size = metadata_of(caller, path)
    if KEY not in found and not any(mark.encode() in text for text in found.values() for mark in MARKS):
        return None
    content = unseal(caller, str(path), found.pop(KEY, None), size=size, only="")
    if found != {name: value.encode() for name, value in ECOSYSTEM.items()}:
        raise CorruptError(f"{caller}: {path} is damaged: its metadata is not what was written")
    return content


def header_in_index(caller: str, path: Path, index: Index, *, lenient: bool = False) -> dict[str, Any] | None:
    """Return the content of the sealed header of an index, or `None` for an index of another program.

    Args:
        caller: the public name that the user called.
        path: of the index.
        index: its content.
        lenient: accept that files of another program are missing or damaged.

    Raises:
        CorruptError: if the text was changed after it was written.
    """
    if index.header is None and index.arrays and not sealed(index.text.decode(errors="replace")):
        if any(_is_part(caller, path.parent / name, lenient) for name in index.files):
            raise CorruptError(f"{caller}: {path} is damaged: purestep's header is not in it")
        return None
    content = unseal(caller, str(path), index.header, names=(index.arrays, index.characters), only="")
    leaves = leaf_specs(caller, str(path), content.get("tree"))
    if index.size != str(sum(nbytes(*leaf) for leaf in leaves.values())).encode():
        raise CorruptError(f"{caller}: {path} is damaged: total_size is not that of its arrays")
    return content


def stored_tree(caller: str, path: Path, content: dict[str, Any], held: dict[str, str] | None) -> StoredTree:
    """Return the tree that a header describes; `held` has the file of each array of a divided state."""
    leaves = leaf_specs(caller, str(path), content.get("tree"))
    sums = content.get("checksums")
    held = dict.fromkeys(leaves, path.name) if held is None else held
    if not isinstance(sums, dict) or not leaves.keys() == sums.keys() == held.keys():
        raise CorruptError(f"{caller}: {path} is damaged: its header does not name the same arrays twice")
    places = {name: reader.Place(held[name], name, str(sums[name])) for name in leaves}

    def read(paths: list[str]) -> dict[str, mx.array]:
        return reader.read(caller, path.parent, places, leaves, paths)

    return StoredTree(str(path), content["tree"], leaves, read)


def _is_part(caller: str, file: Path, lenient: bool) -> bool:
    try:
        return PART in metadata_of(caller, file)[0]
    except CorruptError:
        if not lenient:
            raise
        return False
