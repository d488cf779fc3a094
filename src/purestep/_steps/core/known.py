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
    >>> form = known.note({"w": mx.zeros(2)})
    >>> known.holds({"w": mx.ones(2)}), known.holds({"w": mx.ones(3)}), known.holds({"w": 1.0})
    (True, False, False)
    """

    def __init__(self) -> None:
        self.form: Any = None

    def note(self, value: Any) -> Any:
        """Remember an argument that passed; return its form."""
        self.form = form = tree.map(_Form, value)  # one assignment, so that several threads may check at once
        return form

    def holds(self, value: Any) -> bool:
        """Return whether an argument is built like the last one that passed."""
        form = self.form
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
        self._route: tuple[Any, tuple[Any, ...] | None] | None = None

    def __call__(self, state: TrainState) -> Any:
        """Refuse a value that is not a `TrainState` of arrays, or the state of another transform.

        Returns:
            How the state is built, for `unchanged`.
        """
        form = self._known.form
        if form is None or not _fits(form, state):
            check_state(self._caller, state)
            self._check_opt_state(state.opt_state, state.params)
            form = self._known.note(state)
        return form

    def learning_rate(self, form: Any, opt_state: Any) -> mx.array | None:
        """Return the first learning rate in the optimizer state of a state with this form."""
        known = self._route
        if known is None or known[0] is not form:
            known = self._route = form, _route(opt_state, "learning_rate")
        if known[1] is None:
            return None
        for key in known[1]:
            opt_state = opt_state[key]
        return opt_state

    def unchanged(self, form: Any, before: TrainState, after: TrainState) -> bool:
        """Return whether the state after a step is built like the one before, which has this form.

        Only the fields that come from the functions of users are compared: the step itself keeps the others.
        """
        return _fits(form.opt_state, after.opt_state) and (
            after.model_state is before.model_state or _fits(form.model_state, after.model_state)
        )


def _route(node: Any, name: str) -> tuple[Any, ...] | None:
    """Return the keys and positions that lead to the first NamedTuple field of this name."""
    if not isinstance(node, (dict, list, tuple)):
        return None
    fields = getattr(node, "_fields", ())
    for index, (key, child) in enumerate(node.items() if type(node) is dict else enumerate(node)):
        below = () if fields and fields[index] == name else _route(child, name)
        if below is not None:
            return (key, *below)
    return None


def batch_check(caller: str, microbatches: int) -> Callable[[Batch], None]:
    """Return `check_batch`, which recognizes batches that are built like the last one."""
    known = Known()

    def check(batch: Batch) -> None:
        if not known.holds(batch):
            check_batch(caller, batch, microbatches)
            known.note(batch)

    return check
