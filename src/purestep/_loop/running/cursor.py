"""The batches of a source in order, with the position after each."""

import copy
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Batch
from purestep._data.ranks.sharding import Rows

_END: Any = object()


class Drawn(NamedTuple):
    """One batch.

    Attributes:
        batch: the batch.
        epoch: the pass over the data that it belongs to, from 0; 0 if the source has no epochs.
        position: where the source stands after it, as plain JSON values; `restored` takes it.
        sizes: its samples and tokens on all ranks, or `None`.
    """

    batch: Batch
    epoch: int
    position: Mapping[str, Any]
    sizes: tuple[int, int] | None = None


class Cursor(Protocol):
    """Batches in order. One thread at a time uses it."""

    def draw(self, state: Any) -> Drawn | None:
        """Return the next batch, or `None` at the end. Only on-policy sources read the state."""
        ...


class AtCursor:
    """The batches of an object with `at(step)`."""

    def __init__(self, caller: str, source: Any, step: int):
        self._caller, self.source, self.step = caller, source, step
        self._length = batches_per_epoch(source)

    def draw(self, state: Any) -> Drawn:
        """Return the next batch; such a source has no end."""
        try:
            batch = self.source.at(self.step)
        except StopIteration as error:  # Python would replace it by an error that names a generator.
            raise RuntimeError(
                f"{self._caller}: source.at({self.step}) raised StopIteration; a source with at(step) has no "
                "end: pass an iterator itself, or give steps"
            ) from error
        epoch = self.step // self._length if self._length else 0
        self.step += 1
        return Drawn(batch, epoch, {"step": self.step})


class PolicyCursor:
    """The batches of an object with `at(state)`: on-policy data."""

    def __init__(self, source: Any):
        self.source = source

    def draw(self, state: Any) -> Drawn:
        """Return the batch that the state samples."""
        return Drawn(self.source.at(state), 0, {})


class PassCursor:
    """The batches of an iterable, pass after pass; an iterator has one pass.

    A position is the number of the pass, the number of batches drawn from it, and a checksum of its first
    batch. Restoring it draws these batches again, and compares the first one with the checksum: an iterable
    that shuffles differently each time cannot be resumed. With `own`, a batch is that of all ranks, and
    `own(batch)` is handed out.
    """

    def __init__(
        self,
        caller: str,
        source: Iterable[Batch],
        passes: int | None,
        *,
        position: Any = None,
        check: bool = False,
        own: Callable[[Batch], Batch] | None = None,
    ):
        self._caller, self._source, self._check, self._own = caller, source, check, own
        if isinstance(source, Iterator):
            if passes is not None and passes > 1:
                raise checks.error(
                    caller, f"epochs must be 1 for an iterator, which has one pass, got {passes}"
                )
            passes = 1
        self._passes = passes
        self._epoch, self._drawn, self._first = 0, 0, None
        self._current: Iterator[Batch] | None = None
        if position:
            self._restore(position)

    def draw(self, state: Any) -> Drawn | None:
        """Return the next batch, or `None` after the last pass."""
        while self._passes is None or self._epoch < self._passes:
            if self._current is None:
                self._current = iter(self._source)
            batch = next(self._current, _END)
            if batch is not _END:
                self._note(batch)
                position = self._position()
                return Drawn(batch if self._own is None else self._own(batch), self._epoch, position)
            if self._drawn == 0:
                if self._epoch == 0:
                    raise checks.error(self._caller, "source must hold at least one batch, got none")
                return None  # Later passes are empty: the iterable can be read only once.
            self._current, self._drawn, self._first = None, 0, None
            self._epoch += 1
        return None

    @property
    def complete(self) -> bool:
        """Whether the source had all the passes that were asked for."""
        return self._passes is not None and self._epoch >= self._passes

    def _note(self, batch: Batch) -> None:
        if self._drawn == 0 and self._check:
            self._first = checksum(batch)
        self._drawn += 1

    def _position(self) -> dict[str, Any]:
        position = {"epoch": self._epoch, "batch": self._drawn, "first": self._first}
        own = getattr(self._source, "get_state", None)
        # Copied, since batches are drawn ahead: a source may return the object that it goes on changing.
        return {**position, "own": copy.deepcopy(own())} if own is not None else position

    def _restore(self, position: Mapping[str, Any]) -> None:
        self._epoch, count, own = position["epoch"], position["batch"], position.get("own")
        if own is not None:
            source: Any = self._source
            source.set_state(own)
            self._drawn, self._first = count, position["first"]
            self._current = iter(self._source)
            return
        self._current = iter(self._source)
        if isinstance(self._source, Iterator):
            self._epoch = 0
        for batch in islice(self._current, count):
            self._note(batch)
            known = position["first"] if self._check else None
            if self._drawn == 1 and known is not None and self._first != known:
                raise checks.error(
                    self._caller,
                    "source must repeat the batches of the run that is resumed: the first batch of epoch "
                    f"{position['epoch']} differs. Pass the same data in the same order, or same_data=False",
                )
        if self._drawn < count:
            raise checks.error(
                self._caller,
                f"source must repeat the {count} batches of epoch {self._epoch} that the run has seen, "
                f"got only {self._drawn}",
            )


def cursor_for(
    caller: str,
    source: Any,
    step: int,
    passes: int | None,
    *,
    position: Mapping[str, Any] | None = None,
    check: bool = False,
) -> Cursor:
    """Return a cursor over a source of any kind.

    Args:
        caller: names the public function in errors.
        source: an object with `at(step)` or `at(state)`, or an iterable of batches.
        step: the step of the first batch, for `at(step)`.
        passes: the number of passes over an iterable, or `None` for no limit.
        position: where an iterable continues, from `Drawn.position`.
        check: compute checksums of an iterable's first batches, and compare them when it continues.
    """
    if is_on_policy(source):
        return PolicyCursor(source)
    if hasattr(source, "at"):
        return AtCursor(caller, source, step)
    own = getattr(source, "own", None) if isinstance(source, Rows) else None
    source = source if own is None else source.whole
    return PassCursor(caller, source, passes, position=position, check=check, own=own)


def check_source(caller: str, source: Any) -> None:
    """Refuse a value that is not a source: one batch above all, whose parts look like one."""
    record = tree.is_namedtuple(source) and not hasattr(source, "at")
    if record or isinstance(source, (dict, mx.array)) or hasattr(source, "__array__"):
        # An MLX array has `at` and can be iterated; a dict yields its names.
        raise TypeError(f"{caller}: source must be an iterable of batches, got one batch; write [batch]")
    if isinstance(source, (str, bytes, os.PathLike)):
        raise TypeError(f"{caller}: source must be an iterable of batches, got the text {source!r:.80}")
    if isinstance(source, type):
        raise TypeError(f"{caller}: source must be an object, got the class {source.__name__}: call it")
    if not hasattr(source, "at") and not isinstance(source, Iterable):
        raise TypeError(f"{caller}: source must be iterable or have at(step), got {type(source).__name__}")


def is_on_policy(source: Any) -> bool:
    """Tell whether the batches of a source are sampled from the state."""
    return hasattr(source, "at") and getattr(source, "on_policy", False) is True


def batches_per_epoch(source: Any) -> int | None:
    """Return the number of batches of an epoch, if the source has a length."""
    try:
        return len(source) or None
    except TypeError:
        return None


def checksum(batch: Batch) -> int:
    """Return a checksum of a batch: of its paths, shapes, dtypes and bytes. Waits for the device.

    Of leaves that are neither arrays nor numbers, texts count and the types of others.
    """
    total = 0
    for path, leaf in tree.items(batch):
        array = _as_array(leaf)
        if array is None:
            text = leaf if isinstance(leaf, (str, bytes)) else type(leaf).__name__
            total = zlib.crc32(f"{path} {text!r}".encode(), total)
            continue
        if array.dtype == mx.bfloat16:
            array = array.view(mx.uint16)
        values: Any = mx.contiguous(array)  # an array has the buffer protocol
        head = f"{path} {array.shape} {array.dtype}".encode()
        total = zlib.crc32(memoryview(values), zlib.crc32(head, total))
    return total


def _as_array(leaf: Any) -> mx.array | None:
    """Return a leaf as an array, or `None` for other values, such as a text."""
    if isinstance(leaf, (str, bytes)):
        return None
    try:
        return leaf if isinstance(leaf, mx.array) else mx.array(leaf)
    except (TypeError, ValueError):
        return None
