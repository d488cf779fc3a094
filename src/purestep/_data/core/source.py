"""The protocol of batch sources."""

from typing import Any, Protocol

from purestep._core.types import Batch


class Source(Protocol):
    """Batches as a pure function of the step number.

    A resumed run sees the same batches as an uninterrupted one, because a source has no iterator whose state
    must be saved.
    """

    def at(self, step: int) -> Batch:
        """Return the batch of one step, counted from 0; every call with one step returns the same batch."""
        ...


class OnPolicySource(Protocol):
    """Batches as a function of the training state, such as completions sampled from it.

    Attributes:
        on_policy: true. It tells `run` and `fit` to call `at` with the state.
    """

    on_policy: bool

    def at(self, state: Any) -> Batch:
        """Return the batch of one state; equal states give equal batches."""
        ...
