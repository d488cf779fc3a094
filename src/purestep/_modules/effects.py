"""Checks of the changes that a forward pass makes to its module: each is returned or refused."""

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Any

import mlx.core as mx

from purestep._core import checks
from purestep._core.tracing import graph
from purestep._modules.contents import Change
from purestep._modules.slots import PrivateSlot, Slot


def rewritten(
    changes: Iterable[Change],
    slots: dict[str, list[Slot]],
    state: Collection[str],
    given: Collection[str],
    discard: tuple[str, ...],
) -> list[str]:
    """Return the paths of the model_state that were replaced; refuse every other change.

    Args:
        changes: the changes to the module.
        slots: the module's arrays by path.
        state: the paths of the model_state.
        given: the paths of all arrays that the call received.
        discard: patterns of the paths whose changes are dropped.
    """
    paths: list[str] = []
    for change in changes:
        if any(fnmatchcase(change.path, pattern) for pattern in discard):
            continue
        if change.path.rpartition(".")[2] == "_training":
            continue
        is_state = _first_path(slots, change.path, change.before) in state
        if not (is_state and isinstance(change.after, mx.array)):
            raise checks.error("apply", _lost(change, trained=change.path in given))
        paths.append(change.path)
    return paths


def written(handles: dict[str, mx.array], given: dict[str, mx.array], state: Collection[str]) -> list[str]:
    """Return the paths of the model_state that `array[...] = value` changed; refuse writes to other arrays.

    Such a write changes the array but not the Python object.
    """
    paths: list[str] = []
    for path, handle in handles.items():
        if graph.primitives(handle) != graph.primitives(given[path]):
            if path not in state:
                raise checks.error("apply", _lost(Change(path, handle, handle), trained=True))
            paths.append(path)
    return paths


def refuse_private_writes(arrays: list[tuple[PrivateSlot, mx.array]]) -> None:
    """Refuse `array[...] = value` for arrays under private names and in plain objects."""
    for slot, array in arrays:
        now = slot.read()
        if isinstance(now, mx.array) and graph.primitives(now) != graph.primitives(array):
            raise checks.error("apply", _lost(Change(slot.path, array, now)))


def refuse_lost_state(paths: list[str]) -> None:
    """Refuse changes to the model_state in a call that does not return it."""
    raise checks.error(
        "apply",
        f"the forward pass rewrote {', '.join(sorted(paths))}, which would be lost: pass model_state= and "
        "take (out, model_state), or run with train=False",
    )


def _first_path(slots: dict[str, list[Slot]], path: str, before: Any) -> str:
    """Return the first path of a tied array."""
    if path in slots:
        return path
    for first, places in slots.items():
        if len(places) > 1 and any(slot.read() is before for slot in places):
            return first
    return path


def _lost(change: Change, *, trained: bool = False) -> str:
    if trained:
        return (
            f"the forward pass rewrote {change.path}, a trained array, which would be lost: freeze it, so "
            "that it is part of model_state"
        )
    kind = "an array" if any(isinstance(x, mx.array) for x in (change.before, change.after)) else "a value"
    return (
        f"the forward pass changed {change.path}, {kind} outside model_state, which would be lost. "
        "State must be an array under a name without '_' that exists before the call and is frozen: then it "
        "is part of model_state. Draw random numbers without a key of the module's own: rng= decides them. "
        f"If later calls do not depend on the change, pass discard={change.path!r} to functional"
    )
