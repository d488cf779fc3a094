"""Restoring from a run's directory: one checkpoint, or the newest intact one."""

import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple

from purestep._checkpoint.format.header import CorruptError, kind_of, problem
from purestep._checkpoint.ranks import shared
from purestep._checkpoint.ranks.together import Together
from purestep._checkpoint.restoring.restore import Template, restore
from purestep._checkpoint.run import directory, store
from purestep._checkpoint.run.record import Record
from purestep._checkpoint.run.store import CorruptWarning
from purestep._core import checks
from purestep._core.types import Tree


class Restored(NamedTuple, Generic[Template]):
    """The result of `Checkpointer.restore`: the state, and the record it was saved with."""

    state: Template
    record: Record


def restore_from(
    root: Path, step: int | None, like: Tree, options: Mapping[str, Any], ranks: Together
) -> Restored[Any]:
    """Return the state and the record of a step, or of the newest intact checkpoint.

    Args:
        root: the directory of all checkpoints.
        step: the step of the checkpoint, or `None` for the newest intact one.
        like: the template, or `None`.
        options: `cast`, `partial` and `rename`, as for `restore`.
        ranks: that restore together, the same checkpoint.
    """
    caller, partial = "Checkpointer.restore", options["partial"]
    if not isinstance(partial, str):
        options = {**options, "partial": list(partial)}  # used for each attempt
    if ranks.size > 1:
        return _together(caller, root, step, like, {**options, "group": ranks.group}, ranks)
    if step is None:
        return _newest(caller, root, like, options)
    step = checks.integer(caller, "step", step, least=0)
    return _one(caller, directory.read(caller, store.existing(caller, root, step)), like, options)


def _one(caller: str, manifest: directory.Manifest, like: Tree, options: Mapping[str, Any]) -> Restored[Any]:
    return Restored(restore(caller, manifest.stored_tree(caller), like, **options), manifest.record)


def _newest(caller: str, root: Path, like: Tree, options: Mapping[str, Any]) -> Restored[Any]:
    """Return the state and the record of the newest intact checkpoint; warn of damaged ones that are newer.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        CorruptError: if every checkpoint is damaged.
        OSError: if the system cannot read one. It may be intact, so no older one is returned.
    """
    for _ in range(store.ATTEMPTS):
        sound, damaged = store.manifests(caller, root)
        if not sound and not damaged:
            raise FileNotFoundError(f"{caller}: there is no checkpoint in {root}")
        for manifest in reversed(sound):
            try:
                found = _one(caller, manifest, like, options)
            except (CorruptError, OSError) as error:
                if not kind_of(caller, manifest.record.path):
                    break  # A writer has deleted it, so there are newer ones: list again.
                if isinstance(error, OSError):
                    raise  # The checkpoint may be intact.
                damaged.append(problem(caller, error))
                continue
            if damaged:
                used, listed = manifest.record.step, "\n  ".join(damaged)
                message = f"{caller}: used step {used}, passed over\n  {listed}"
                warnings.warn(message, CorruptWarning, stacklevel=4)
            return found
        else:
            raise CorruptError(f"{caller}: no checkpoint is intact:\n  " + "\n  ".join(damaged))
    raise OSError(f"{caller}: checkpoints in {root} are deleted faster than they can be read")


class _DifferError(Exception):
    """Ranks see different checkpoints: another writer is at work, or a network file system is late."""


def _together(
    caller: str, root: Path, step: int | None, like: Tree, options: Mapping[str, Any], ranks: Together
) -> Restored[Any]:
    """Do the same on each rank of a group: a checkpoint that one rank cannot restore is not restored."""
    end, pause = time.monotonic() + shared.VISIBLE, shared.PAUSES[0]
    while True:
        try:
            return _attempt(caller, root, step, like, options, ranks)
        except _DifferError as error:  # on all ranks
            if ranks.exchange(time.monotonic() > end)[0]:
                raise checks.error(caller, str(error)) from None
        time.sleep(pause)
        pause = min(2 * pause, shared.PAUSES[1])


def _attempt(
    caller: str, root: Path, step: int | None, like: Tree, options: Mapping[str, Any], ranks: Together
) -> Restored[Any]:
    sound: list[directory.Manifest] = []
    damaged: list[str] = []

    def seen() -> list[Any] | None:
        """Return what identifies the next checkpoint, or `None`."""
        return [(found := sound[-1].record).path.name, found.time, found.bytes] if sound else None

    def listed() -> list[Any] | None:
        if step is None:
            found, problems = store.manifests(caller, root)
            damaged.extend(problems)
            sound.extend(found)
        else:
            number = checks.integer(caller, "step", step, least=0)
            sound.extend(directory.read(caller, path) for path in store.of_step(root, number)[-1:])
        return seen()

    _compare(root, ranks.collect(listed))
    if step is not None and not sound:
        store.existing(caller, root, step)  # raises the error, on all ranks
    while sound:
        manifest = sound.pop()
        error: Exception | None = None
        found: Any = None
        try:
            found = _one(caller, manifest, like, options)
        except Exception as caught:
            error = caught
        gone = isinstance(error, (CorruptError, OSError)) and not kind_of(caller, manifest.record.path)
        skipped = step is None and (gone or isinstance(error, CorruptError))
        failure = ranks.first_error(None if skipped else error)
        texts = [] if failure else ranks.exchange([problem(caller, error) if skipped and error else "", gone])
        del error
        if failure is not None:
            raise failure
        if any(gone for _, gone in texts):
            raise _DifferError(f"checkpoints in {root} must stay while they are read, got deleted ones")
        problems = [f"{text} (on rank {rank})" for rank, (text, _) in enumerate(texts) if text]
        if not problems:
            _warn(caller, manifest.record.step, damaged)
            return found
        del found
        damaged += problems
        _compare(root, ranks.collect(seen))
    if damaged:
        raise CorruptError(f"{caller}: no checkpoint is intact:\n  " + "\n  ".join(damaged))
    raise FileNotFoundError(f"{caller}: there is no checkpoint in {root}")


def _compare(root: Path, found: list[list[Any] | None]) -> None:
    """Refuse a checkpoint that not all ranks see; every rank has the same list."""
    for rank, other in enumerate(found):
        if other != found[0]:
            names = [each[0] if each else "no checkpoint" for each in (found[0], other)]
            raise _DifferError(
                f"{root} must be a directory that all ranks share, got {names[0]} on rank 0 and "
                f"{names[1]} on rank {rank}" + (" with another content" if names[0] == names[1] else "")
            )


def _warn(caller: str, used: int, damaged: list[str]) -> None:
    if damaged:
        message = f"{caller}: used step {used}, passed over\n  " + "\n  ".join(damaged)
        warnings.warn(message, CorruptWarning, checks.users_level())
