"""`Stream`: any iterable of batches, with a position that a checkpoint can hold."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import mlx.core as mx

from purestep._core import checks
from purestep._core.types import Batch


class Stream:
    """Batches of an iterable, a loader or an `mlx.data` stream, with a position.

    Numpy arrays in batches become MLX arrays. `run` and `fit` read it pass after pass, and `fit` stores its
    position: of an object with `state_dict()` and `load_state_dict(state)` its own state, otherwise the
        number
    of the pass and the batches drawn from it. When such a run is resumed, these batches are read and dropped.

    >>> stream = Stream(lambda epoch: ({"x": mx.array(10 * epoch + n)} for n in range(3)))
    >>> [batch["x"].item() for batch in stream], [batch["x"].item() for batch in stream]
    ([0, 1, 2], [10, 11, 12])
    >>> stream.set_state({"epoch": 1, "batch": 2})
    >>> [batch["x"].item() for batch in stream]
    [12]
    """

    def __init__(self, source: Iterable[Any] | Callable[[int], Iterable[Any]]):
        """Wrap a source.

        Args:
            source: an iterable that can be read again, a function from the number of the pass to an iterable,
                or an object with `reset()`, such as a stream of `mlx.data`, which is called before each pass.

        Raises:
            ValueError: if the source is an iterator without `reset()`: it could be read once.
        """
        caller = "Stream"
        if not callable(source) and not isinstance(source, Iterable):
            raise TypeError(f"{caller}: source must be an iterable or a function, got {checks.shown(source)}")
        if isinstance(source, Iterator) and not hasattr(source, "reset"):
            raise checks.error(
                caller, "source must be readable again: pass a function that makes the iterator instead"
            )
        self._source: Any = source
        self._epoch = self._drawn = self._skip = 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of one pass, from the restored position on."""
        self._drawn, self._skip = self._skip, 0
        for batch in islice(self._begun(), self._drawn if not self._has_own else 0, None):
            self._drawn += 1
            yield converted(batch)
        self._epoch, self._drawn = self._epoch + 1, 0

    def get_state(self) -> dict[str, Any]:
        """Return the position after the batch that was drawn last, as plain values."""
        position: dict[str, Any] = {"epoch": self._epoch, "batch": self._drawn}
        return {**position, "own": self._source.state_dict()} if self._has_own else position

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue at a position: the next pass begins there."""
        self._epoch, self._skip = state["epoch"], state["batch"]
        if self._has_own:
            self._source.load_state_dict(state["own"])

    @property
    def _has_own(self) -> bool:
        return hasattr(self._source, "state_dict") and hasattr(self._source, "load_state_dict")

    def _begun(self) -> Iterator[Any]:
        if hasattr(self._source, "reset"):
            self._source.reset()
        if isinstance(self._source, Iterable):
            return iter(self._source)
        return iter(self._source(self._epoch))


def converted(batch: Any) -> Batch:
    """Return a batch whose arrays are MLX arrays; other leaves are refused by the step."""
    if isinstance(batch, dict):
        return {name: converted(child) for name, child in batch.items()}
    if isinstance(batch, (list, tuple)):
        children = [converted(child) for child in batch]
        return type(batch)(*children) if hasattr(batch, "_fields") else type(batch)(children)
    if isinstance(batch, mx.array) or not hasattr(batch, "shape"):
        return batch
    return mx.array(batch)
