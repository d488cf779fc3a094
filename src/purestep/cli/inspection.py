"""The results of `inspect` as plain values: the arrays of one state, or the difference of two."""

from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.run import directory, store
from purestep._core import checks, tree
from purestep._core.tree.patterns import compile_pattern
from purestep._measures.difference import difference
from purestep.cli.listing import File, Listing, list_files, list_run
from purestep.cli.stored import Source, open_source, problem_of, read_all

CALLER = "inspect"


class Entry(NamedTuple):
    """One stored array. The norm is in float32; it is `None` for integers and damaged arrays."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    norm: float | None
    status: str


class Opened(NamedTuple):
    """The content of a path.

    Attributes:
        listing: the listing of a run's directory.
        files: the files of a directory of files.
        source: the checkpoint or file to show, or `None` if none can be read.
        problems: errors found without reading arrays.
    """

    listing: Listing | None
    files: tuple[File, ...] | None
    source: Source | None
    problems: list[str]


def opened(path: Path, step: int | None) -> Opened:
    """Open a path. Damage is returned as problems; a wrong argument raises."""
    path = path.absolute()
    if path.exists() and not path.is_dir() and not path.is_file():
        raise checks.error(
            CALLER, f"{path} must be a directory or a regular file"
        )  # reading a device may not end
    if (
        not path.is_dir()
        or (path / directory.MANIFEST).exists()
        or directory.step_and_attempt(path) is not None
    ):
        if step is not None:
            raise checks.error(CALLER, f"--step needs the directory of a run, {path} is not one")
        return Opened(None, None, *_source(path))
    listing = list_run(CALLER, path)
    steps = [checkpoint.step for checkpoint in listing.checkpoints]
    if not steps:
        if step is not None:
            raise checks.error(CALLER, f"--step needs a directory of checkpoints, {path} holds none")
        return _of_files(path)
    if step is not None:
        return Opened(listing, None, *_source(store.existing(CALLER, path, step)))
    passed_over: list[str] = []
    for number in reversed(steps):
        source, problems = _source(store.existing(CALLER, path, number))
        if source is not None:
            return Opened(listing, None, source, [*passed_over, *problems])
        passed_over += problems
    return Opened(listing, None, None, passed_over)


def _of_files(path: Path) -> Opened:
    """Open the newest readable file of a directory of files, such as a demo's run or a model."""
    files, sources = list_files(CALLER, path)
    if not files:
        raise checks.error(CALLER, f"there is no checkpoint in {path}: name one, or a file")
    passed_over: list[str] = []
    for file in reversed(files):
        if file.name in sources:
            return Opened(None, files, sources[file.name], [*passed_over, *file.problems])
        passed_over += file.problems
    return Opened(None, files, None, passed_over)


def _source(path: Path) -> tuple[Source | None, list[str]]:
    try:
        source = open_source(CALLER, path)
    except ValueError as error:
        return None, [problem_of(CALLER, error)]
    return source, list(source.problems)


def inspected(found: Opened, pattern: str | None) -> dict[str, Any]:
    """Return the output of `inspect` for one path as plain values; verify every array shown."""
    entries, problems = [], list(found.problems)
    for path, array, problem in _arrays(found.source, pattern):
        assert found.source is not None
        dtype, shape = found.source.leaves[path]
        if array is None:
            problems.append(problem)
            entries.append(Entry(path, dtype, shape, 0, None, "damaged"))
            continue
        status = "verified" if found.source.summed else "no checksum"
        entries.append(Entry(path, dtype, shape, array.nbytes, _norm(array), status))
    listed = (() if found.listing is None else found.listing.checkpoints, found.files or ())
    for entry in chain.from_iterable(listed):
        problems += [problem for problem in entry.problems if problem not in problems]
    record = None if found.source is None else found.source.record
    return {
        "source": None if found.source is None else str(found.source.path),
        "kind": None if found.source is None else found.source.kind,
        "run": None if found.listing is None else found.listing._asdict(),
        "files": None if found.files is None else [file._asdict() for file in found.files],
        "record": None if record is None else {**record._asdict(), "path": str(record.path)},
        "arrays": [entry._asdict() for entry in entries],
        "problems": problems,
    }


def compared(first: Opened, second: Opened, pattern: str | None) -> dict[str, Any]:
    """Return the differences of two sources as plain values, with a verdict in one word."""
    problems = [*first.problems, *second.problems]
    a, b = first.source, second.source
    if a is None or b is None:
        problems = problems or ["no checkpoint can be read"]
        return {"verdict": "damaged", "first": None, "second": None, "problems": problems}
    ours, theirs = _matching(a, pattern, required=False), _matching(b, pattern, required=False)
    if pattern is not None and not ours and not theirs:
        raise checks.error(CALLER, f"--leaves {pattern!r} matches no array of either")
    both = [path for path in ours if path in b.leaves]
    alike = [path for path in both if a.leaves[path] == b.leaves[path]]
    differ, same = [], 0
    for one, other in zip(read_all(CALLER, a, alike), read_all(CALLER, b, alike), strict=True):
        path, left, problem = one
        _, right, other_problem = other
        problems += [said for said in (problem, other_problem) if said]
        if left is None or right is None:
            continue
        found = difference(left, right)
        same += found.same_bits
        if not found.same_bits:
            differ.append({"path": path, **found._asdict()})
    lists = {
        "only_in_first": [path for path in ours if path not in b.leaves],
        "only_in_second": [path for path in theirs if path not in a.leaves],
        "reshaped": [
            {"path": path, "first": a.leaves[path][1], "second": b.leaves[path][1]}
            for path in both
            if a.leaves[path][1] != b.leaves[path][1]
        ],
        "retyped": [
            {"path": path, "first": a.leaves[path][0], "second": b.leaves[path][0]}
            for path in both
            if a.leaves[path][0] != b.leaves[path][0]
        ],
        "differ": differ,
    }
    verdict = "damaged" if problems else "different" if any(lists.values()) else "identical"
    return {
        "verdict": verdict,
        "first": str(a.path),
        "second": str(b.path),
        **lists,
        "same_bits": same,
        "problems": problems,
    }


def _arrays(source: Source | None, pattern: str | None) -> Any:
    return [] if source is None else read_all(CALLER, source, _matching(source, pattern, required=True))


def _matching(source: Source, pattern: str | None, *, required: bool) -> list[str]:
    if pattern is None:
        return list(source.leaves)
    compiled = compile_pattern(CALLER, pattern)
    found = [path for path in source.leaves if compiled.fullmatch(path)]
    if required and not found:
        raise checks.error(CALLER, f"--leaves {pattern!r} matches no array of {source.path}")
    return found


def _norm(array: mx.array) -> float | None:
    if not mx.issubdtype(array.dtype, mx.inexact):
        return None
    norm: Any = tree.norm(mx.abs(array)).item()
    return norm
