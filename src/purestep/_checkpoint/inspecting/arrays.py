"""Stored arrays of any kind of file, and how to read a few of them at a time."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.format.header import CorruptError, problem
from purestep._checkpoint.format.specs import Leaves, nbytes
from purestep._checkpoint.run.record import Record

# Bytes of arrays that are read together. Each read parses the header of the file again.
_TOGETHER = 64 << 20


class StoredArrays(NamedTuple):
    """The arrays of one checkpoint or file, before they are read. Files of other programs have no tree.

    Attributes:
        path: the path of the file or directory.
        kind: the kind of storage, in words.
        leaves: dtypes and shapes by path.
        read: returns the arrays of a list of paths, in memory; raises `CorruptError`.
        summed: whether `read` verifies a checksum of every array.
        record: the record of a checkpoint.
        problems: errors found outside of the arrays.
        files: the names of the files that an index names.
    """

    path: Path
    kind: str
    leaves: Leaves
    read: Callable[[list[str]], dict[str, mx.array]]
    summed: bool
    record: Record | None = None
    problems: tuple[str, ...] = ()
    files: frozenset[str] = frozenset()


def read_all(
    caller: str, stored: StoredArrays, paths: list[str]
) -> Iterator[tuple[str, mx.array | None, str]]:
    """Yield each path with its array, or with `None` and the error. Few arrays are in memory at a time.

    Raises:
        OSError: if the system cannot read the file; the file may be sound.
    """
    for group in _groups(stored.leaves, paths):
        try:
            found: dict[str, Any] = stored.read(group)
            problems = {}
        except CorruptError:
            found, problems = _one_by_one(caller, stored, group)
        for path in group:
            yield path, found.get(path), problems.get(path, "")


def _one_by_one(caller: str, stored: StoredArrays, paths: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    found: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for path in paths:
        try:
            found |= stored.read([path])
        except CorruptError as error:
            problems[path] = problem(caller, error)
    return found, problems


def _groups(leaves: Leaves, paths: list[str]) -> Iterator[list[str]]:
    group: list[str] = []
    filled = 0
    for path in paths:
        size = nbytes(*leaves[path])
        if group and filled + size > _TOGETHER:
            yield group
            group, filled = [], 0
        group.append(path)
        filled += size
    if group:
        yield group
