"""From a state to the job that writes its checkpoint, on one rank or on each rank of a group."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx

from purestep._checkpoint.disk import device, tensors
from purestep._checkpoint.disk.plain import write_text
from purestep._checkpoint.ranks import files, receipts
from purestep._checkpoint.ranks.division import Stored, check_parts, division
from purestep._checkpoint.ranks.files import Buffers, Files, files_of
from purestep._checkpoint.run import directory, store
from purestep._checkpoint.run.committing import NOT_SAVED, Committer, facts_of, failure
from purestep._core import checks, tree
from purestep._core.packing import viewed
from purestep._core.types import Tree

_CALLER = "Checkpointer.save"
Job = Callable[[], None]
Plan = tuple[list[Files], list[mx.array]] | None
"""The files of each rank, and the arrays and vectors of this one that have the elements."""


def prepared(
    committer: Committer,
    state: Tree,
    step: int,
    metrics: dict[str, float],
    metadata: dict[str, Any],
    *,
    early: bool,
) -> Job | None:
    """Return the job that writes the checkpoint, or `None` if this rank writes nothing.

    In a group, every rank calls it at the same place.

    Args:
        committer: has the lock and the records on rank 0.
        state: of this rank.
        step: the step.
        metrics: of the record; those of rank 0 are stored.
        metadata: of the record; those of rank 0 are stored.
        early: the next step may run before the job ends.

    Raises:
        ValueError: for a state that cannot be stored; if ranks have other steps or states.
    """
    ranks, facts = committer.ranks, (step, metrics, metadata)
    if ranks.size == 1:
        return _alone(committer, state, facts)
    plans: list[Plan] = []

    def described() -> list[Any]:
        spec, plan = _described(state, ranks.size, committer.shard_bytes)
        plans.append(plan)
        return [step, _digest(spec), _digest(_outline(plan)), plan is not None]

    _compare(ranks.collect(described))
    if plans[0] is not None:
        return _parted(committer, state, facts, early, *plans[0])
    return ranks.agree(lambda: _alone(committer, state, facts) if ranks.rank == 0 else None)


def _alone(committer: Committer, state: Tree, facts: Any) -> Job:
    """Return the job of a process that writes the whole state."""
    arrays, spec = tensors.described(state, _CALLER)
    record = committer.announce(*facts)
    plain = facts_of(record)

    def fill(place: Path) -> None:
        directory.write(place, arrays, spec, plain, committer.shard_bytes)

    def job() -> None:
        try:
            committer.commit(fill, record)
        finally:
            arrays.clear()
            device.trim()

    return job


def _described(state: Tree, count: int, limit: int | None) -> tuple[list[Any], Plan]:
    """Return the spec of a state, and the plan if it has parts; refuse one that cannot be stored."""
    has_parts = check_parts(_CALLER, "state", state, count)
    whole = viewed(state)
    tensors.check_storable(_CALLER, whole)
    tensors.check_arrays_storable(_CALLER, "state", dict(tree.items(whole)))
    if not has_parts:
        return _spec(state), None
    entries, sources = division(state, count)
    return _spec(state), (files_of(entries, limit), sources)


def _outline(plan: Plan) -> list[Any]:
    """Return all of a plan that must be equal on all ranks."""
    every = [] if plan is None else plan[0]
    return [
        [name, [[entry.path, entry.key, entry.dtype, entry.shape] for entry in entries]]
        for own in every
        for name, entries in own.items()
    ]


def _digest(plain: list[Any]) -> str:
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def _spec(state: Tree) -> list[Any]:
    return tree.to_plain(tree.spec(viewed(state)))


def _compare(found: list[list[Any]]) -> None:
    """Refuse other steps or states on some ranks; every rank has the same list."""
    first = found[0]
    for rank, (step, *described) in enumerate(found):
        if step != first[0]:
            raise checks.error(
                _CALLER,
                f"step must be equal on all ranks, got {first[0]} on rank 0 and {step} on rank {rank}",
            )
        if described == first[1:]:
            continue
        wrong = "paths, shapes or dtypes" if described[0] != first[1] else "vectors or parts"
        raise checks.error(
            _CALLER,
            f"state must be built alike on all ranks, got other {wrong} on rank {rank} than on rank 0",
        )


def _parted(
    committer: Committer, state: Tree, facts: Any, early: bool, every: list[Files], sources: list[mx.array]
) -> Job:
    """Return the job of a rank that writes its part."""
    ranks, step, spec = committer.ranks, facts[0], _spec(state)
    own = every[ranks.rank]
    hidden = ranks.agree(lambda: store.hide(committer.path, step) if ranks.rank == 0 else None)
    place = committer.path / ranks.exchange(hidden.name if hidden else "")[0]
    try:
        presence, buffers = ranks.agree(
            lambda: (
                receipts.Presence(_CALLER, place, ranks.rank) if ranks.rank else None,
                Buffers(sources, own, early=early),
            )
        )
    except BaseException:
        if hidden is not None:
            store.drop(hidden)
        raise
    if presence is not None:
        return lambda: _write_part(place, step, ranks.rank, own, buffers, presence)
    record = committer.announce(*facts)
    plain = facts_of(record)

    def fill(temporary: Path) -> None:
        others = range(1, ranks.size)
        try:
            sums = [files.write(temporary, own, buffers)]
        except BaseException:
            with suppress(OSError, RuntimeError):  # the first error is the one to see
                receipts.collect(temporary, others)  # before their files are removed
            raise
        found = receipts.collect(temporary, others)
        sums += [found[rank]["sums"] for rank in range(1, ranks.size)]
        _complete(temporary, every, sums, plain, spec)

    def job() -> None:
        try:
            committer.commit(fill, record, place)
        except BaseException:
            store.drop(place)
            raise
        finally:
            buffers.clear()

    return job


def _write_part(
    hidden: Path, step: int, rank: int, own: Files, buffers: Buffers, presence: receipts.Presence
) -> None:
    """Write the files of one rank, and a receipt with their checksums, or with the error.

    Rank 0 raises the error, on all ranks.
    """
    try:
        try:
            found = {"sums": files.write(hidden, own, buffers)}
        except Exception as error:
            found = receipts.of_error(error)
        receipts.write(hidden, rank, found)
    except Exception as error:  # rank 0 has ended or removed the directory
        raise failure(error, NOT_SAVED.replace("{step}", str(step))) from error
    finally:
        presence.release()
        buffers.clear()


def _complete(
    hidden: Path, every: list[Files], sums: list[dict[str, dict[str, str]]], facts: Any, spec: list[Any]
) -> None:
    """Write the indices and the manifest of a checkpoint whose ranks have written their files."""
    names = [name for own in every for name in own]
    for own in every:
        for name, entries in own.items():
            files.check_size(hidden / name, entries)
    for name, text in files.indices(every).items():
        write_text(hidden / name, text)
        names.append(name)
    leaves: dict[str, list[str]] = {}
    further: dict[str, list[list[Any]]] = {}
    for rank, own in enumerate(every):
        for name, entries in own.items():
            for entry in entries:
                place = [name, entry.key, sums[rank][name][entry.key]]
                _enter(entry, place, leaves, further)
    content: dict[str, Any] = {"tree": spec, "leaves": leaves}
    directory.write_manifest(hidden, names, facts, content | ({"pieces": further} if further else {}))


def _enter(
    entry: Stored, place: list[str], leaves: dict[str, list[str]], further: dict[str, list[list[Any]]]
) -> None:
    if entry.number == 0:
        leaves[entry.path] = place
    else:
        further.setdefault(entry.path, []).append([*place, entry.shape[0]])
