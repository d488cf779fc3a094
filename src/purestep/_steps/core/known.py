"""Arguments that have passed all checks, recognized by their structure, shapes and dtypes."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import tree
from purestep._core.types import Batch
from purestep._steps.core.batches import check_batch
from purestep._steps.state import TrainState, check_state
from purestep._transforms.core.fitting import StateCheck


class Known:
    """The structure, shapes and dtypes of the last argument that passed all checks.

    Checks depend on nothing else, so an argument that is built alike passes them too. Comparing takes a
    fraction of their time, which matters in an uncompiled step.

    >>> known = Known()
    >>> known.note({"w": mx.zeros(2)})
    >>> known.holds({"w": mx.ones(2)}), known.holds({"w": mx.ones(3)}), known.holds({"w": 1.0})
    (True, False, False)
    """

    def __init__(self) -> None:
        self._form: Any = None

    def note(self, value: Any) -> None:
        """Remember an argument that passed."""
        self._form = tree.map(_Form, value)  # one assignment, so that several threads may check at once

    def holds(self, value: Any) -> bool:
        """Return whether an argument is built like the last one that passed."""
        form = self._form
        return form is not None and _fits(form, value)


class _Form:
    """The shape and dtype of an array, without its memory."""

    __slots__ = ("dtype", "shape")

    def __init__(self, leaf: mx.array):
        self.shape, self.dtype = leaf.shape, leaf.dtype


def _fits(form: Any, node: Any) -> bool:
    kind = type(form)
    if kind is _Form:
        return type(node) is mx.array and node.shape == form.shape and node.dtype == form.dtype
    if type(node) is not kind:
        return False
    if form is None:
        return True
    if len(node) != len(form):
        return False
    if kind is dict:
        for key, child in form.items():
            if key not in node:
                return False
            other = node[key]
            if type(child) is _Form:  # here, not by a call: most nodes are arrays
                if type(other) is not mx.array or other.shape != child.shape or other.dtype != child.dtype:
                    return False
            elif not _fits(child, other):
                return False
        return True
    for child, other in zip(form, node, strict=True):  # noqa: SIM110  (a generator takes twice as long)
        if not _fits(child, other):
            return False
    return True


class StateChecks:
    """All checks of the state before a step, and of the one after it."""

    def __init__(self, caller: str, check_opt_state: StateCheck):
        self._caller, self._check_opt_state, self._known = caller, check_opt_state, Known()

    def __call__(self, state: TrainState) -> None:
        """Refuse a value that is not a `TrainState` of arrays, or the state of another transform."""
        if self._known.holds(state):
            return
        check_state(self._caller, state)
        self._check_opt_state(state.opt_state, state.params)
        self._known.note(state)

    def unchanged(self, before: TrainState, after: TrainState) -> bool:
        """Return whether two states are built alike; the first one has passed the checks."""
        return self._known.holds(after) or tree.alike(before, after)


def batch_check(caller: str, microbatches: int) -> Callable[[Batch], None]:
    """Return `check_batch`, which recognizes batches that are built like the last one."""
    known = Known()

    def check(batch: Batch) -> None:
        if not known.holds(batch):
            check_batch(caller, batch, microbatches)
            known.note(batch)

    return check
