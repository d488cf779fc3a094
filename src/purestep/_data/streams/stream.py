"""`Stream`: any iterable of batches, with a position that a checkpoint can hold."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Batch
from purestep._data.core.converting import array_of
from purestep._data.streams.plain import from_plain, to_plain

_CALLER = "Stream"
_END = object()


class Stream:
    """Batches of an iterable, a loader or an `mlx.data` stream, with a position.

    Numpy arrays in batches become MLX arrays. `run` and `fit` read it pass after pass, and `fit` stores its
    position. For an object with `state_dict()` and `load_state_dict(state)`, such as a loader of torchdata,
    that is the object's own state, copied when a batch is drawn. A resumed run loads it and continues there,
    without `reset()` and without reading anything again. For other sources it is the number of the pass and
    of the batches drawn from it. A resumed run reads these batches again and drops them; it compares the
    first one, so a source that shuffles differently each time is refused.

    >>> stream = Stream(lambda epoch: ({"x": mx.array(10 * epoch + n)} for n in range(3)))
    >>> [batch["x"].item() for batch in stream], [batch["x"].item() for batch in stream]
    ([0, 1, 2], [10, 11, 12])
    >>> stream.set_state({"epoch": 1, "batch": 2})
    >>> [batch["x"].item() for batch in stream]
    [12]
    """

    def __init__(self, source: Iterable[Any] | Callable[[int], Iterable[Any]], *, same_data: bool = True):
        """Wrap a source.

        Args:
            source: an iterable that can be read again, a function from the number of the pass to an iterable,
                or an object with `reset()`, such as a stream of `mlx.data`, which is called before each pass.
            same_data: refuse to resume a source without a state of its own if its first batch differs.

        Raises:
            ValueError: if the source is an iterator without `reset()`: it could be read once.
            TypeError: if the source is one batch, or neither an iterable nor a function.
        """
        if isinstance(source, (dict, mx.array, str, bytes)):
            found = type(source).__name__
            raise TypeError(f"{_CALLER}: source must be an iterable of batches, got {found}; write [batch]")
        if not callable(source) and not isinstance(source, Iterable):
            raise TypeError(
                f"{_CALLER}: source must be an iterable or a function, got {checks.shown(source)}"
            )
        if isinstance(source, Iterator) and not hasattr(source, "reset"):
            raise checks.error(
                _CALLER, "source must be readable again: pass a function that makes the iterator instead"
            )
        self._source: Any = source
        self._same_data = same_data
        self._epoch = self._drawn = 0
        self._first: int | None = None
        self._restored: Mapping[str, Any] | None = None  # where the next pass begins

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of one pass, from the restored position on."""
        restored, self._restored = self._restored, None
        own = restored is not None and "own" in restored and self._has_own
        batches = self._begun(reset=not own)
        self._drawn, self._first = 0, None
        if restored is not None:
            if not own:
                self._read_again(batches, restored)
            self._drawn, self._first = restored["batch"], restored.get("first")
        for batch in batches:
            found = converted(batch)
            if self._drawn == 0 and not self._has_own:
                self._first = _checksum(found)
            self._drawn += 1
            yield found
        self._epoch, self._drawn, self._first = self._epoch + 1, 0, None

    def get_state(self) -> dict[str, Any]:
        """Return the position after the batch that was drawn last, as plain values."""
        if self._restored is not None:
            return dict(self._restored)
        position: dict[str, Any] = {"epoch": self._epoch, "batch": self._drawn}
        if self._has_own:
            return {**position, "own": to_plain(self._source.state_dict())}
        return {**position, "first": self._first}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue at a position from `get_state`: the next pass begins there.

        Raises:
            ValueError: if the position is that of a source with a state of its own, and this one has none,
                or the other way round.
        """
        caller = f"{_CALLER}.set_state"
        epoch = checks.integer(caller, "the epoch of the state", state["epoch"], least=0)
        batch = checks.integer(caller, "the batch of the state", state["batch"], least=0)
        if self._has_own != ("own" in state) and (epoch or batch):
            kinds = ("without", "with") if self._has_own else ("with", "without")
            raise checks.error(
                caller,
                f"state must be that of the same kind of source, got one of a source {kinds[0]} state_dict() "
                f"for a source {kinds[1]} it",
            )
        self._epoch, self._drawn, self._restored = epoch, batch, dict(state)
        if "own" in state and self._has_own:
            self._source.load_state_dict(from_plain(state["own"]))

    @property
    def _has_own(self) -> bool:
        return hasattr(self._source, "state_dict") and hasattr(self._source, "load_state_dict")

    def _begun(self, *, reset: bool) -> Iterator[Any]:
        if reset and hasattr(self._source, "reset"):
            self._source.reset()
        if isinstance(self._source, Iterable):
            return iter(self._source)
        made = self._source(self._epoch)
        if not isinstance(made, Iterable) or isinstance(made, (dict, mx.array, str, bytes)):
            rule = f"source({self._epoch}) must return an iterable of batches"
            raise TypeError(f"{_CALLER}: {rule}, got {type(made).__name__}")
        return iter(made)

    def _read_again(self, batches: Iterator[Any], restored: Mapping[str, Any]) -> None:
        """Drop the batches that were drawn before; refuse a source that does not repeat them."""
        count, first = restored["batch"], restored.get("first")
        for number in range(count):
            batch = next(batches, _END)
            if batch is _END:
                raise checks.error(
                    _CALLER,
                    f"source must repeat the {count} batches of epoch {self._epoch} that the run has seen, "
                    f"got only {number}",
                )
            if number == 0 and self._same_data and first not in (None, _checksum(converted(batch))):
                raise checks.error(
                    _CALLER,
                    "source must repeat the batches of the run that is resumed: the first batch of epoch "
                    f"{self._epoch} differs. Pass the same data, or Stream(..., same_data=False)",
                )


def converted(batch: Any, name: str = "") -> Batch:
    """Return a batch whose arrays are MLX arrays; other leaves are refused by the step."""
    if isinstance(batch, dict):
        return {key: converted(child, tree.join(name, str(key))) for key, child in batch.items()}
    if isinstance(batch, (list, tuple)):
        names = getattr(batch, "_fields", range(len(batch)))
        children = [
            converted(child, tree.join(name, str(key))) for key, child in zip(names, batch, strict=True)
        ]
        return type(batch)(*children) if tree.is_namedtuple(batch) else type(batch)(children)
    if isinstance(batch, mx.array) or not hasattr(batch, "shape"):
        return batch
    return array_of(_CALLER, name or "the batch", batch)


def _checksum(batch: Batch) -> int:
    """Return a checksum of the arrays of a batch. Waits for the device."""
    total = 0
    for path, leaf in tree.items(batch):
        if isinstance(leaf, mx.array):
            plain = leaf.view(mx.uint16) if leaf.dtype == mx.bfloat16 else leaf
            values: Any = mx.contiguous(plain)  # an array has the buffer protocol
            head = f"{path} {leaf.shape} {leaf.dtype}".encode()
            total = zlib.crc32(memoryview(values), zlib.crc32(head, total))
    return total
