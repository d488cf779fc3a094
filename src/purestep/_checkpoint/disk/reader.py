"""Read named arrays from safetensors files, and verify them."""

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.disk import device
from purestep._checkpoint.format import checksum
from purestep._checkpoint.format.header import CorruptError, reading, verified
from purestep._checkpoint.format.safetensors_header import check_array_names, read_safetensors_header
from purestep._checkpoint.format.specs import Leaves
from purestep._core import tree

_SUMMING = min(4, os.cpu_count() or 1)  # threads
_SMALL = 1 << 14  # bytes, of an array whose checksum takes less time than another thread
_UNSUMMED = 2 * _SUMMING  # arrays that wait for their checksum while MLX reads on
# MLX's messages if the system refused to open or to read; they give no reason.
_REFUSED = re.compile("Failed to open|Unable to read")


class Place(NamedTuple):
    """The place of an array: file name, name within the file, checksum."""

    file: str
    key: str
    checksum: str


def lazy(caller: str, path: Path) -> dict[str, mx.array]:
    """Return the arrays of a file with a checked header; each is read when it is evaluated.

    Raises:
        CorruptError: if it is damaged, or has a dtype that MLX cannot read.
        OSError: if the system cannot read it.
    """
    arrays: Any = None
    for last in (False, True):
        try:
            # On the CPU stream: the host checks the arrays, and would have to fetch them from device memory.
            arrays = mx.load(os.fspath(path), format="safetensors", stream=mx.cpu)
            break
        except (RuntimeError, ValueError, LookupError, TypeError) as error:
            if last or not isinstance(error, RuntimeError):
                raise _unreadable(caller, f"{path}", [path], error) from None
            _probe(caller, path)  # the cause may have passed
    return arrays


def _settle() -> None:
    """Wait for the reads that MLX has started, so that their errors do not appear in a later evaluation."""
    for _ in range(100):  # each raises what it finds, and then there may be more
        try:
            mx.synchronize(mx.default_stream(mx.cpu))
            return
        except RuntimeError:
            continue


def _probe(caller: str, path: Path) -> None:
    """Read a file through the system, to get its reason for an error.

    Raises:
        CorruptError: if it is missing or cut.
        OSError: for another reason than damage.
    """
    read_safetensors_header(caller, path)
    with reading(caller, path), path.open("rb") as file:
        while file.read(1 << 24):
            pass


def _unreadable(caller: str, source: str, files: Iterable[Path], error: Exception) -> Exception:
    """Return the error for a failed read of MLX, after the system has read the files without an error."""
    for file in files:
        _probe(caller, file)
    if _REFUSED.search(str(error)):
        return OSError(
            f"{caller}: {source} cannot be read by MLX ({error}), but now by the system: try again"
        )
    return CorruptError(f"{caller}: {source} cannot be read by MLX ({error})")


def read(
    caller: str,
    directory: Path,
    places: Mapping[str, Place],
    leaves: Leaves,
    paths: list[str],
    check: Callable[[Path], object] | None = None,
) -> dict[str, mx.array]:
    """Return arrays by path, in memory; dtype, shape and checksum of each are verified.

    Args:
        caller: the public name that the user called.
        directory: of the files.
        places: of every array in the files.
        leaves: dtype and shape of each array.
        paths: of the arrays to return.
        check: refuses a changed file before its arrays are read.

    Raises:
        CorruptError: for a file that is missing, cut or foreign, or an array that was changed.
        OSError: if the system cannot read one for another reason.
        MemoryError: if there is no room for the arrays.
    """
    files = {places[path].file for path in paths}
    found = _chosen(
        caller, directory, places, leaves, paths, _opened(caller, directory, places, files, check)
    )
    sources = {name: directory / name for name in files}
    sums: deque[tuple[str, Future[None]]] = deque()

    def finish() -> None:
        path, done = sums.popleft()
        try:
            done.result()
        finally:
            del done  # the traceback of the error would refer to it: a reference cycle
        found[path] = device.placed(found[path])

    # Read now: a lazy array would read the file as it is later. While MLX reads the next arrays, threads
    # compute checksums of those already read.
    try:
        with ThreadPoolExecutor(_SUMMING) as pool:
            _evaluate(caller, f"{directory}", sources.values(), lambda: mx.async_eval(found))
            for path in found:
                place, file = places[path], sources[places[path].file]
                _evaluate(caller, f"{path} in {file}", [file], lambda path=path: mx.eval(found[path]))
                raw = checksum.raw(found[path])
                if raw.nbytes <= _SMALL:
                    _check_bytes(caller, file, path, place, raw)
                    found[path] = device.placed(found[path])
                    continue
                sums.append((path, pool.submit(_check_bytes, caller, file, path, place, raw)))
                del raw  # which would keep the array
                if len(sums) > _UNSUMMED:
                    finish()
            while sums:
                finish()
            mx.eval(found)
    except BaseException as error:
        found.clear()
        sums.clear()
        if isinstance(error, Exception):  # an interrupt does not wait
            _settle()
        raise
    finally:
        device.trim()
    return found


def unsummed(
    caller: str, directory: Path, files: Mapping[str, str], leaves: Leaves, keys: Iterable[str]
) -> dict[str, mx.array]:
    """Return arrays by name, in memory, from files with checked headers and without checksums.

    Raises:
        CorruptError: for a file that is missing or cut, or an array of another dtype or shape.
        OSError: if the system cannot read one for another reason.
    """
    found = unread(caller, directory, files, leaves, keys)
    return in_memory(caller, found, {key: [directory / files[key]] for key in found})


def unread(
    caller: str, directory: Path, files: Mapping[str, str], leaves: Leaves, keys: Iterable[str]
) -> dict[str, mx.array]:
    """Return arrays as `unsummed` does, each to be read when it is evaluated."""
    wanted = list(keys)
    opened = {name: lazy(caller, directory / name) for name in dict.fromkeys(files[key] for key in wanted)}
    found: dict[str, mx.array] = {}
    for key in wanted:
        name = files[key]
        found[key] = opened[name].pop(key)
        _check_kind(caller, directory, key, Place(name, key, ""), leaves[key], found[key])
    return found


def in_memory(
    caller: str, found: dict[str, mx.array], sources: Mapping[str, list[Path]]
) -> dict[str, mx.array]:
    """Evaluate arrays that are read from files, one after another, and place them on the device.

    Args:
        caller: the public name that the user called.
        found: the arrays by name; they are replaced.
        sources: the files that each array may be read from.
    """
    for key, files in sources.items():
        source = f"{key} in {files[0] if len(files) == 1 else files[0].parent}"
        _evaluate(caller, source, files, lambda key=key: mx.eval(found[key]))
        found[key] = device.placed(found[key])
    mx.eval(found)
    device.trim()
    return found


def _evaluate(caller: str, source: str, files: Iterable[Path], evaluation: Callable[[], object]) -> None:
    """Read arrays of files; a lack of memory is not damage."""
    try:
        evaluation()
    except RuntimeError as error:
        _settle()
        if "alloc" in str(error):
            raise MemoryError(f"{caller}: there is no room for {source}: {error}") from None
        raise _unreadable(caller, source, files, error) from None


def examine(
    caller: str, directory: Path, file: str, held: Mapping[str, Place], leaves: Leaves
) -> Iterator[CorruptError]:
    """Yield the problems of the arrays of one file; one array at a time is in memory.

    Raises:
        CorruptError: if none of them can be read.
        OSError: if the system cannot read the file for another reason than damage.
    """
    arrays = _opened(caller, directory, held, {file}, None)[file]
    for path, place in held.items():
        array = arrays.pop(place.key)
        try:
            _check_kind(caller, directory, path, place, leaves[path], array)
            source = f"{path} in {directory / file}"
            _evaluate(caller, source, [directory / file], lambda array=array: mx.eval(array))
            _check_bytes(caller, directory / file, path, place, checksum.raw(array))
        except CorruptError as error:
            yield error


def _opened(
    caller: str,
    directory: Path,
    places: Mapping[str, Place],
    files: set[str],
    check: Callable[[Path], object] | None,
) -> dict[str, dict[str, mx.array]]:
    """Return the lazy arrays of files that hold exactly the arrays of `places`."""
    keys: dict[str, set[str]] = {name: set() for name in files}
    for place in places.values():
        if place.file in keys:
            keys[place.file].add(place.key)
    opened: dict[str, dict[str, mx.array]] = {}
    for name in files:
        file = directory / name
        if check is not None:
            check(file)
        check_array_names(caller, file, keys[name])  # before MLX allocates memory for the arrays
        opened[name] = lazy(caller, file)
        if opened[name].keys() != keys[name]:
            raise CorruptError(f"{caller}: {file} is damaged: its arrays are not those its header names")
    return opened


def _chosen(
    caller: str,
    directory: Path,
    places: Mapping[str, Place],
    leaves: Leaves,
    paths: list[str],
    opened: Mapping[str, Mapping[str, mx.array]],
) -> dict[str, mx.array]:
    """Return the selected lazy arrays by path."""
    found: dict[str, mx.array] = {}
    for path in paths:
        found[path] = opened[places[path].file][places[path].key]
        _check_kind(caller, directory, path, places[path], leaves[path], found[path])
    return found


def _check_kind(
    caller: str, directory: Path, path: str, place: Place, leaf: tuple[str, tuple[int, ...]], array: mx.array
) -> None:
    if (tree.dtype_name(array.dtype), array.shape) != leaf:
        file = directory / place.file
        raise CorruptError(f"{caller}: {file} is damaged: {path} has another dtype or shape")


def _check_bytes(caller: str, file: Path, path: str, place: Place, raw: Any) -> None:
    source = f"{path} in {file}"
    if not verified(caller, source, place.checksum, raw):
        raise CorruptError(f"{caller}: {source} is damaged: its bytes do not have the checksum written")
