"""Where batches come from."""

from typing import Protocol

from purestep._core.types import Batch


class Source(Protocol):
    """Batches as a pure function of the step number: a resumed run sees what an uninterrupted one does.

    There is no iterator to save, restore or exhaust: whoever knows the step knows the batch.
    """

    def at(self, step: int) -> Batch:
        """Return the batch of one step, counted from 0; the same batch whenever it is asked for."""
        ...
