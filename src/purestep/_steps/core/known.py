"""Arguments that have passed all checks, recognized by their structure, shapes and dtypes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core.types import Batch
from purestep._steps.core.batches import check_batch
from purestep._steps.state import TrainState, check_state
from purestep._transforms.core.fitting import StateCheck

_array = mx.array


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
        self.form = form = _form(value)  # one assignment, so that several threads may check at once
        return form

    def holds(self, value: Any) -> bool:
        """Return whether an argument is built like the last one that passed."""
        form = self.form
        return form is not None and _fits(form, value)


class _Form(NamedTuple):
    """How a tree of arrays is built, without their memory.

    Attributes:
        kind: the type of the node.
        length: the number of children.
        leaves: the keys or positions of the children that are arrays, with their shapes and dtypes.
        others: the keys or positions of the other children, with their forms.
    """

    kind: type
    length: int
    leaves: list[tuple[Any, tuple[int, ...], mx.Dtype]]
    others: "list[tuple[Any, _Form]]"


def _form(node: Any) -> _Form:
    if type(node) is mx.array:
        return _Form(_array, 0, [(None, node.shape, node.dtype)], [])
    children = _children(node)
    leaves = [(key, child.shape, child.dtype) for key, child in children if type(child) is mx.array]
    others = [(key, _form(child)) for key, child in children if type(child) is not mx.array]
    return _Form(type(node), len(children), leaves, others)


def _children(node: Any) -> list[tuple[Any, Any]]:
    return list(node.items() if type(node) is dict else enumerate(() if node is None else node))


def _fits(form: _Form, node: Any) -> bool:
    kind, length, leaves, others = form
    if type(node) is not kind:
        return False
    if kind is _array:
        return node.shape == leaves[0][1] and node.dtype == leaves[0][2]
    if node is None:
        return True
    if len(node) != length:
        return False
    try:
        for key, shape, dtype in leaves:
            leaf = node[key]
            if type(leaf) is not _array or leaf.shape != shape or leaf.dtype != dtype:
                return False
        for key, below in others:
            if not _fits(below, node[key]):
                return False
    except KeyError:
        return False
    return True


class StateChecks:
    """All checks of the state before a step, and of the one after it."""

    def __init__(self, caller: str, check_opt_state: StateCheck):
        self._caller, self._check_opt_state = caller, check_opt_state
        self._form: TrainState | None = None  # the form of each field of the last state that passed
        self._route: tuple[Any, tuple[Any, ...] | None] | None = None

    def __call__(self, state: TrainState) -> Any:
        """Refuse a value that is not a `TrainState` of arrays, or the state of another transform.

        Returns:
            How the state is built, for `unchanged`.
        """
        form = self._form
        if form is None or type(state) is not type(form) or not all(map(_fits, form, state)):
            check_state(self._caller, state)
            self._check_opt_state(state.opt_state, state.params)
            self._form = form = type(state)(*map(_form, state))
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
