"""Restoring from a run's directory: one checkpoint, or the newest intact one."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple

from purestep._checkpoint.format.header import CorruptError, kind_of, problem
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
    caller: str, root: Path, step: int | None, like: Tree, options: Mapping[str, Any]
) -> Restored[Any]:
    """Return the state and the record of a step, or of the newest intact checkpoint.

    Args:
        caller: the public name that the user called.
        root: the directory of all checkpoints.
        step: the step of the checkpoint, or `None` for the newest intact one.
        like: the template, or `None`.
        options: `cast`, `partial` and `rename`, as for `restore`.
    """
    partial = options["partial"]
    if not isinstance(partial, str):
        options = {**options, "partial": list(partial)}  # used for each attempt
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
