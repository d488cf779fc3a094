"""Arguments that have passed all checks, recognized by their structure, shapes and dtypes.

The checks depend on nothing else, so an argument that is built like the last one that passed also passes.
Comparing takes a fraction of their time, which matters in an uncompiled step.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core.tree.forms import Form, fits, form
from purestep._core.types import Batch
from purestep._steps.core.batches import check_batch
from purestep._steps.state import TrainState, check_state
from purestep._transforms.core.fitting import StateCheck


class StateChecks:
    """All checks of the state before a step, and of the one after it."""

    def __init__(self, caller: str, check_opt_state: StateCheck):
        self._caller, self._check_opt_state = caller, check_opt_state
        # The form of each field of the last state that passed. It is set by one assignment, so that several
        # threads may check at once.
        self._known: Any = None
        self._route: tuple[Any, tuple[Any, ...] | None] | None = None

    def __call__(self, state: TrainState) -> Any:
        """Refuse a value that is not a `TrainState` of arrays, or the state of another transform.

        Returns:
            How the state is built, for `unchanged`.
        """
        known = self._known
        if known is None or type(state) is not type(known) or not all(map(fits, known, state)):
            check_state(self._caller, state)
            self._check_opt_state(state.opt_state, state.params)
            self._known = known = type(state)._make(map(form, state))
        return known

    def learning_rate(self, built: Any, opt_state: Any) -> mx.array | None:
        """Return the first learning rate in the optimizer state of a state that is built like this."""
        known = self._route
        if known is None or known[0] is not built:
            known = self._route = built, _route(opt_state, "learning_rate")
        if known[1] is None:
            return None
        for key in known[1]:
            opt_state = opt_state[key]
        return opt_state

    def unchanged(self, built: Any, before: TrainState, after: TrainState) -> bool:
        """Return whether the state after a step is built like the one before.

        Only the fields that come from the functions of users are compared: the step itself keeps the others.
        """
        return fits(built.opt_state, after.opt_state) and (
            after.model_state is before.model_state or fits(built.model_state, after.model_state)
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
    known: Form | None = None

    def check(batch: Batch) -> None:
        nonlocal known
        if known is None or not fits(known, batch):
            check_batch(caller, batch, microbatches)
            known = form(batch)

    return check
