"""The files of a divided state: which rank writes which, and how one is written without a copy."""

import errno
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from purestep._checkpoint.disk import atomic, device
from purestep._checkpoint.format import checksum, names
from purestep._checkpoint.format.header import naming
from purestep._checkpoint.format.names import ECOSYSTEM, SUFFIX
from purestep._checkpoint.format.safetensors_header import NAMES
from purestep._checkpoint.format.specs import DTYPES
from purestep._checkpoint.ranks.division import Stored

Files = dict[str, list[Stored]]


def files_of(division: Sequence[Sequence[Stored]], limit: int | None) -> list[Files]:
    """Return the files of each rank by name, of at most `limit` bytes or one array each."""
    groups: dict[str, list[tuple[int, list[Stored]]]] = {}
    for rank, entries in enumerate(division):
        for stem in ("model", "state"):
            own = [entry for entry in entries if entry.stem == stem]
            groups.setdefault(stem, []).extend((rank, group) for group in _grouped(own, limit))
    found: list[Files] = [{} for _ in division]
    for stem, own in groups.items():
        for number, (rank, group) in enumerate(own, start=1):
            name = stem + SUFFIX if len(own) == 1 else names.shard(stem, number, len(own))
            found[rank][name] = group
    return found


def _grouped(entries: list[Stored], limit: int | None) -> list[list[Stored]]:
    groups: list[list[Stored]] = []
    filled = 0
    for entry in entries:
        if not groups or (limit is not None and filled + entry.nbytes > limit):
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += entry.nbytes
    return groups


class Buffers:
    """The bytes of the arrays that a rank writes, which the step's own arrays hold.

    On CUDA the host reads copies, see `device`: of all arrays now if `early`, so that the next step may run
    while they are written; else of one array at a time.
    """

    def __init__(self, sources: Sequence[mx.array], files: Files, *, early: bool):
        used = {entry.source for entries in files.values() for entry in entries}
        held = {number: sources[number] for number in sorted(used)}
        device.evaluate(held.values())
        self._late = device.on_cuda() and not early
        if device.on_cuda() and early:
            held = {number: device.copied(source) for number, source in held.items()}
            device.evaluate(held.values())
        self._held: dict[int, Any] = dict(held)
        if not device.on_cuda():
            self._held = {number: _bytes(source) for number, source in held.items()}
        self._last: tuple[int, Any] = -1, b""

    def of(self, entry: Stored) -> Any:
        """Return the bytes of an entry."""
        if not entry.nbytes:
            return b""
        if self._last[0] != entry.source:
            self._last = -1, b""  # before the next one is copied
            self._last = entry.source, self._whole(self._held[entry.source])
        start = entry.start * DTYPES[entry.dtype].size
        return self._last[1][start : start + entry.nbytes]

    def clear(self) -> None:
        """Drop the arrays."""
        self._held.clear()
        self._last = -1, b""
        device.trim()

    def _whole(self, held: Any) -> Any:
        if not isinstance(held, mx.array):
            return held
        if self._late:
            held = device.copied(held)
            mx.eval(held)
        return _bytes(held)


def _bytes(array: mx.array) -> Any:
    """Return the bytes of an array; it is copied only if its elements are not in order."""
    if not array.size:
        return b""
    raw = checksum.raw(array)
    return (raw if raw.c_contiguous else checksum.raw(mx.contiguous(array))).cast("B")


def write(directory: Path, files: Files, buffers: Buffers) -> dict[str, dict[str, str]]:
    """Write the files of a rank and wait until they are on the disk; return the checksum of each array.

    Raises:
        OSError: if one cannot be written whole; it is removed.
    """
    return {name: _write(directory / name, entries, buffers) for name, entries in files.items()}


def _write(path: Path, entries: list[Stored], buffers: Buffers) -> dict[str, str]:
    sums: dict[str, str] = {}
    with naming(path):
        try:
            with path.open("xb") as file:
                file.write(header_of(entries))
                for entry in entries:
                    data = buffers.of(entry)
                    sums[entry.key] = checksum.of(data)
                    file.write(data)
        except BaseException:
            path.unlink(missing_ok=True)  # a full disk has room for the reason again
            raise
    atomic.flush(path)
    return sums


def header_of(entries: Sequence[Stored]) -> bytes:
    """Return the start of a safetensors file with these arrays, in this order."""
    described: dict[str, Any] = {"__metadata__": ECOSYSTEM}
    place = 0
    for entry in entries:
        described[entry.key] = {
            "data_offsets": [place, place + entry.nbytes],
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
        }
        place += entry.nbytes
    text = json.dumps(described, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # the arrays begin at a multiple of 8, as other writers do
    return len(text).to_bytes(8, "little") + text


def check_size(path: Path, entries: Sequence[Stored]) -> None:
    """Refuse a file of another rank that is not as long here as it was written."""
    with naming(path):
        found = path.stat().st_size
    written = len(header_of(entries)) + sum(entry.nbytes for entry in entries)
    if found != written:
        raise OSError(errno.EIO, f"has {found} bytes on rank 0, {written} were written", str(path))


def indices(files: Sequence[Files]) -> dict[str, str]:
    """Return the text of the index of each state that is in several files, by name."""
    named = [(name, entries) for own in files for name, entries in own.items()]
    found: dict[str, str] = {}
    for stem in ("model", "state"):
        held = {name: entries for name, entries in named if entries[0].stem == stem}
        if len(held) > 1:
            found[names.index_of(stem)] = _index(held)
    return found


def _index(held: Mapping[str, list[Stored]]) -> str:
    size = sum(entry.nbytes for entries in held.values() for entry in entries)
    places = {entry.key: name for name, entries in held.items() for entry in entries}
    return json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=1) + "\n"
