"""One checkpoint on disk: a directory of safetensors files and a manifest with their checksums.

    step_00000100/
        manifest.json        step, metrics, metadata, versions, the tree, a checksum of every array
        model.safetensors    `params` under the model's own names, for any reader
        state.safetensors    everything else, by path

Of a state that is divided over ranks, each rank writes its part: state-00001-of-00004.safetensors and so on.
Files over the shard limit are divided, with an index each, as on Hugging Face.
"""

import errno
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata as packages
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.disk import atomic, plain, reader, tensors
from purestep._checkpoint.disk.naming import check_file_names
from purestep._checkpoint.disk.pieces import Pieces, in_pieces, read_joined
from purestep._checkpoint.format import checksum
from purestep._checkpoint.format.header import (
    CorruptError,
    problem,
    read_text,
    reading,
    seal,
    unseal,
    verified,
)
from purestep._checkpoint.format.names import MANIFEST as MANIFEST
from purestep._checkpoint.format.names import index_of
from purestep._checkpoint.format.specs import Leaves, leaf_specs
from purestep._checkpoint.restoring.restore import StoredTree
from purestep._checkpoint.run.record import Record
from purestep._core.tree import Spec

_PARAMS = "params."
_NAME = re.compile(r"step_(\d{8,18})(?:\.([1-9]\d{0,8}))?")


class Manifest(NamedTuple):
    """The content of a manifest, checked for consistency but not against the files.

    Attributes:
        record: the facts that policies use.
        tree: the state's `tree.spec`.
        leaves: dtype and shape of each array by path.
        places: file, key and checksum of each array by path, and of each piece by its name.
        files: size in bytes, and the digest of the file, or of its header if it holds arrays.
        pieces: the pieces of each array that ranks stored together, by path.
        stored: dtype and shape of each array and piece in the files.
    """

    record: Record
    tree: Spec
    leaves: Leaves
    places: dict[str, reader.Place]
    files: dict[str, tuple[int, str]]
    pieces: Pieces
    stored: Leaves

    def stored_tree(self, caller: str) -> StoredTree:
        """Return the stored arrays for a restore; each file is checked when it is read."""

        def check(file: Path) -> None:
            self.check_file(caller, file.name)

        def read(paths: list[str]) -> dict[str, mx.array]:
            return self.read(caller, paths, check)

        return StoredTree(str(self.record.path), self.tree, self.leaves, read, self.pieces)

    def read(
        self, caller: str, paths: list[str], check: Callable[[Path], object] | None = None
    ) -> dict[str, mx.array]:
        """Return arrays by path, and pieces by name, in memory and verified; `check` refuses a file."""

        def read(names: list[str]) -> dict[str, mx.array]:
            return reader.read(caller, self.record.path, self.places, self.stored, names, check)

        return read_joined(read, self.leaves, self.pieces, paths) if self.pieces else read(paths)

    def check_file(self, caller: str, name: str) -> None:
        """Refuse a changed file; its arrays are checked when they are read."""
        path, (size, digest) = self.record.path / name, self.files[name]
        plain.check_plain(caller, path)
        with reading(caller, path):
            found, unsummed = path.stat().st_size, plain.unsummed(path)
        if found != size:
            raise CorruptError(f"{caller}: {path} is damaged: {found} bytes, {size} were written")
        if not verified(caller, str(path), digest, unsummed):
            raise CorruptError(f"{caller}: {path} is damaged: it is not as it was written")

    def verify(self, caller: str) -> list[str]:
        """Return one line for each damaged part of the files; reads every byte, one array at a time.

        Raises:
            OSError: if one cannot be read for another reason than damage or an error of the disk.
        """
        problems: list[Exception] = []
        held: dict[str, dict[str, reader.Place]] = {}
        for path, place in self.places.items():
            held.setdefault(place.file, {})[path] = place
        for name in self.files:
            try:
                self.check_file(caller, name)
                if name in held:
                    problems += reader.examine(caller, self.record.path, name, held[name], self.stored)
            except CorruptError as error:
                problems.append(error)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                problems.append(error)
        return [problem(caller, error) for error in problems]


def path_of(root: Path, step: int, attempt: int = 1) -> Path:
    """Return the directory for a step; a step saved again gets a new name, `step_00000100.2`."""
    return root / (f"step_{step:08}" if attempt == 1 else f"step_{step:08}.{attempt}")


def step_and_attempt(entry: Path) -> tuple[int, int] | None:
    """Return the step and attempt in the name of a directory, or `None` for any other name."""
    found = _NAME.fullmatch(entry.name)
    if not found:
        return None
    step, attempt = int(found[1]), int(found[2] or 1)
    return (step, attempt) if entry == path_of(entry.parent, step, attempt) else None


def is_checkpoint(path: Path) -> bool:
    """Tell whether a directory is one checkpoint, by its name or its manifest."""
    return step_and_attempt(path) is not None or (path / MANIFEST).exists()


def write(
    directory: Path,
    arrays: Mapping[str, mx.array],
    spec: Any,
    facts: Mapping[str, Any],
    shard_bytes: int | None,
) -> None:
    """Fill a new directory with one checkpoint and wait until it is on the disk.

    Args:
        directory: empty, under a temporary name.
        arrays: evaluated and contiguous, by path.
        spec: `tree.spec` of the state.
        facts: `step`, `time`, `metrics` and `metadata`, plain values.
        shard_bytes: the maximum size of a file.
    """
    files: dict[str, dict[str, mx.array]] = {}
    paths: dict[tuple[str, str], str] = {}
    names: list[str] = []
    for stem, keys in _groups(arrays).items():
        shards = tensors.shards(stem, {key: arrays[path] for key, path in keys.items()}, shard_bytes)
        files |= shards
        names += shards
        paths |= {(file, key): keys[key] for file, shard in shards.items() for key in shard}
        if len(shards) > 1:
            index = index_of(stem)
            plain.write_text(directory / index, tensors.index(shards, {}))
            names.append(index)
    summed = tensors.write_summed(directory, files)
    leaves = {
        paths[file, key]: [file, key, found] for file, sums in summed.items() for key, found in sums.items()
    }
    write_manifest(directory, names, facts, {"tree": spec, "leaves": leaves})


def write_manifest(
    directory: Path, names: Iterable[str], facts: Mapping[str, Any], content: Mapping[str, Any]
) -> None:
    """Complete a checkpoint whose files are written.

    Args:
        directory: of the checkpoint.
        names: of its files.
        facts: as for `write`.
        content: `tree`, `leaves`, and `pieces` if arrays are in several.
    """
    files = {
        file: [(directory / file).stat().st_size, checksum.of(plain.unsummed(directory / file))]
        for file in names
    }
    sealed = seal({**facts, "versions": versions(), "files": files, **content})
    plain.write_text(directory / MANIFEST, sealed)
    atomic.flush(directory)


def read(caller: str, directory: Path, *, only: str | None = None) -> Manifest:
    """Read a manifest.

    Args:
        caller: the public name that the user called.
        directory: of the checkpoint.
        only: read only this member of the metadata, with a bound on its size, as in `unseal`.

    Raises:
        CorruptError: if it is missing, changed or inconsistent.
        ValueError: if another version of purestep wrote it, or it points outside its directory.
    """
    path = directory / MANIFEST
    plain.check_plain(caller, directory, directory=True)
    plain.check_plain(caller, path)
    text = read_text(caller, path)
    content = unseal(caller, str(path), text, only=only)
    leaves = leaf_specs(caller, str(path), content.get("tree"))
    try:
        places = {leaf: reader.Place(*map(_text, place)) for leaf, place in content["leaves"].items()}
        pieces, stored = in_pieces(leaves, places, content.get("pieces", {}))
        files = {name: (_whole(size), _text(digest)) for name, (size, digest) in content["files"].items()}
        record = Record(
            step=_whole(content["step"]),
            serial=_whole(content.get("serial", 0)),
            time=_number(content["time"]),
            metrics={name: _number(value) for name, value in content["metrics"].items()},
            metadata={**content.get("metadata", {})},
            versions={name: _text(version) for name, version in content["versions"].items()},
            bytes=len(text) + sum(size for size, _ in files.values()),
            path=directory,
        )
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        raise CorruptError(f"{caller}: {path} is damaged: it does not describe a checkpoint") from None
    check_file_names(caller, path, files)
    if places.keys() != stored.keys() or not {place.file for place in places.values()} <= files.keys():
        raise CorruptError(f"{caller}: {path} is damaged: its arrays have no place in its files")
    if (record.step,) != (step_and_attempt(directory) or ())[:1]:
        raise CorruptError(f"{caller}: {directory} holds step {record.step}: it was renamed or swapped")
    return Manifest(record, content["tree"], leaves, places, files, pieces, stored)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError
    return value


def _number(value: Any) -> float:
    if type(value) in (int, float) or value in ("nan", "inf", "-inf"):  # as metrics that are not finite
        return float(value)
    raise TypeError


def _groups(arrays: Mapping[str, mx.array]) -> dict[str, dict[str, str]]:
    """Return the paths in each file by their names there: the model's own for parameters, else the path."""
    model = {path.removeprefix(_PARAMS): path for path in arrays if path.startswith(_PARAMS)}
    rest = {path: path for path in arrays if not path.startswith(_PARAMS)}
    return {stem: keys for stem, keys in (("model", model), ("state", rest)) if keys}


def versions() -> dict[str, str]:
    """Return the versions of purestep, MLX and Python."""
    found = {"python": platform.python_version()}
    for name in ("purestep", "mlx"):
        try:
            found[name] = packages.version(name)
        except packages.PackageNotFoundError:  # on the path, not installed
            found[name] = "unknown"
    return found
