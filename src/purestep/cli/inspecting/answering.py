"""The answer of `inspect` as plain values: the arrays of one state, or the difference of two."""

from itertools import chain
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.inspecting.arrays import StoredArrays, read_all
from purestep._core import checks, norms
from purestep._core.tree.patterns import compile_pattern
from purestep._measures.difference import difference
from purestep.cli.inspecting.opening import CALLER, PathContent


class Entry(NamedTuple):
    """One stored array. The norm is in float32; it is `None` for integers and damaged arrays."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    norm: float | None
    status: str


def inspected(found: PathContent, pattern: str | None) -> dict[str, Any]:
    """Return the answer for one path; verify every array shown."""
    entries, problems = [], list(found.problems)
    for path, array, problem in _arrays(found.stored, pattern):
        assert found.stored is not None
        dtype, shape = found.stored.leaves[path]
        if array is None:
            problems.append(problem)
            entries.append(Entry(path, dtype, shape, 0, None, "damaged"))
            continue
        status = "verified" if found.stored.summed else "no checksum"
        entries.append(Entry(path, dtype, shape, array.nbytes, _norm(array), status))
    listed = (() if found.listing is None else found.listing.checkpoints, found.files or ())
    for entry in chain.from_iterable(listed):
        problems += [problem for problem in entry.problems if problem not in problems]
    record = None if found.stored is None else found.stored.record
    return {
        "source": None if found.stored is None else str(found.stored.path),
        "kind": None if found.stored is None else found.stored.kind,
        "run": None if found.listing is None else found.listing._asdict(),
        "files": None if found.files is None else [file._asdict() for file in found.files],
        "record": None if record is None else {**record._asdict(), "path": str(record.path)},
        "arrays": [entry._asdict() for entry in entries],
        "problems": problems,
    }


def compared(first: PathContent, second: PathContent, pattern: str | None) -> dict[str, Any]:
    """Return the differences of two states, with a verdict in one word."""
    problems = [*first.problems, *second.problems]
    a, b = first.stored, second.stored
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


def _arrays(stored: StoredArrays | None, pattern: str | None) -> Any:
    return [] if stored is None else read_all(CALLER, stored, _matching(stored, pattern, required=True))


def _matching(stored: StoredArrays, pattern: str | None, *, required: bool) -> list[str]:
    if pattern is None:
        return list(stored.leaves)
    compiled = compile_pattern(CALLER, pattern)
    found = [path for path in stored.leaves if compiled.fullmatch(path)]
    if required and not found:
        raise checks.error(CALLER, f"--leaves {pattern!r} matches no array of {stored.path}")
    return found


def _norm(array: mx.array) -> float | None:
    if not mx.issubdtype(array.dtype, mx.inexact):
        return None
    norm: Any = norms.norm(mx.abs(array)).item()
    return norm
