"""What the ranks of a group tell each other: values, and the error of one of them."""

import builtins
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import mlx.core as mx

from purestep._checkpoint.disk import device
from purestep._checkpoint.disk.lock import LockedError
from purestep._checkpoint.format.header import CorruptError
from purestep._core import tree
from purestep._core.collective import group_of
from purestep._core.types import Tree
from purestep._steps.state import TrainState

Value = TypeVar("Value")

_ROW = 512  # bytes of a message that fits into the first exchange
_MARK = b"PSck"  # begins each message: what is received may be the sum of a step
_LENGTH = 4
_HEAD = len(_MARK) + _LENGTH
# Variables that mlx.launch or mpirun sets. Without them no group is made: that may start MPI.
_LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
_KINDS: dict[str, type[Exception]] = {"CorruptError": CorruptError, "LockedError": LockedError}


class Together:
    """The ranks of a group. Each of them calls the same methods in the same order, on the main thread.

    Args:
        group: the processes, or `None` for this one alone.

    Attributes:
        unreported: whether there were saves whose errors no method has raised since. Equal on all ranks.
    """

    def __init__(self, group: mx.distributed.Group | None):
        self.group = group
        self.rank, self.size = (0, 1) if group is None else (group.rank(), group.size())
        self.unreported = False
        self._caller = ""
        self._keys: list[mx.array] = []

    def start(self, caller: str, *trees: Any, after: Tree = None, quiet: bool = False) -> None:
        """Prepare the messages of a public method: evaluate the state that was seen last, and these trees.

        A rank that has read a metric has computed sums that the others have yet to compute. The messages
        would mix with these sums.

        Args:
            caller: the method.
            trees: that the method will read; they may be wrong arguments.
            after: a state whose sums come before the messages.
            quiet: nothing is exchanged now.
        """
        if self.group is None:
            return
        self._caller = caller
        if after is not None:
            self._keys = list(_keys(after))
        if not quiet:
            device.evaluate([*self._keys, *(leaf for each in trees for leaf in _arrays(each))])
            self._keys = []

    def report(self, caller: str, work: Callable[[], None]) -> None:
        """Call a function that raises errors of saves; on all ranks if there were any saves."""
        unreported, self.unreported = self.unreported, False
        if unreported:
            self.start(caller)
            self.agree(work)
        else:
            work()

    def exchange(self, value: Any) -> list[Any]:
        """Return the value of each rank, a JSON value.

        Raises:
            RuntimeError: if the ranks are in different methods.
        """
        if self.group is None:
            return [value]
        text = json.dumps([self._caller, value]).encode()
        row = _MARK + len(text).to_bytes(_LENGTH, "little") + text[: _ROW - _HEAD]
        rows = self._gathered(row.ljust(_ROW, b"\0"))
        if any(each[: len(_MARK)] != _MARK for each in rows):
            raise RuntimeError(
                f"{self._caller}: the messages of the ranks have mixed with sums of a step: evaluate the "
                "last state on every rank before, and call the same methods on all ranks in the same order"
            )
        lengths = [int.from_bytes(each[len(_MARK) : _HEAD], "little") for each in rows]
        texts = [each[_HEAD:] for each in rows]
        if max(lengths) > _ROW - _HEAD:
            texts = self._gathered(text.ljust(max(lengths), b"\0"))
        found = [json.loads(text[:length]) for text, length in zip(texts, lengths, strict=True)]
        for rank, (caller, _) in enumerate(found):
            if caller != found[0][0]:
                raise RuntimeError(
                    f"{self._caller}: all ranks must call the same methods in the same order, got "
                    f"{found[0][0]} on rank 0 and {caller} on rank {rank}"
                )
        return [value for _, value in found]

    def agree(self, work: Callable[[], Value]) -> Value:
        """Call a function on each rank and return its result; an error of one rank is raised on all."""
        if self.group is None:
            return work()
        error: Exception | None = None
        result: Any = None
        try:
            result = work()
        except Exception as caught:
            error = caught
        failure = self.first_error(error)
        del error
        if failure is not None:
            raise failure
        return result

    def collect(self, work: Callable[[], Any]) -> list[Any]:
        """Call a function on each rank and return all results, JSON values; an error is raised on all."""
        error: Exception | None = None
        value: Any = None
        try:
            value = work()
        except Exception as caught:
            if self.group is None:
                raise
            error = caught
        found = self.exchange([value, None if error is None else _described(error)])
        failure = error or next(
            (_rebuilt(each, rank) for rank, (_, each) in enumerate(found) if each is not None), None
        )
        del error
        if failure is not None:
            raise failure
        return [value for value, _ in found]

    def first_error(self, own: Exception | None) -> Exception | None:
        """Return the error of this rank; else the first error of another rank, or `None`."""
        found = self.exchange(None if own is None else _described(own))
        if own is not None:
            return own
        return next((_rebuilt(each, rank) for rank, each in enumerate(found) if each is not None), None)

    def _gathered(self, row: bytes) -> list[bytes]:
        numbers = mx.array(list(row), mx.int32)  # which every backend can send
        found: Any = mx.distributed.all_gather(numbers[None], group=self.group).tolist()
        return [bytes(number & 255 for number in each) for each in found]


def together(caller: str, group: Any) -> Together:
    """Return the ranks of a group; for `None` those of all processes that were launched together."""
    if group is None and not any(name in os.environ for name in _LAUNCHED):
        return Together(None)
    processes = group_of(caller, group)
    return Together(processes if processes.size() > 1 else None)


def _arrays(node: Any) -> Iterator[mx.array]:
    """Yield the arrays of a tree that is not checked yet."""
    if isinstance(node, mx.array):
        yield node
    below = node.items() if isinstance(node, Mapping) else tree.children(node) or []
    for _, child in below:
        yield from _arrays(child)


def _keys(node: Any) -> Iterator[mx.array]:
    """Yield the key of each `TrainState` in a tree."""
    if isinstance(node, TrainState):
        if isinstance(node.rng, mx.array):
            yield node.rng
        return
    for _, child in tree.children(node) or []:
        yield from _keys(child)


def _described(error: Exception) -> dict[str, Any]:
    text, number = str(error), None
    if isinstance(error, OSError) and error.errno is not None:
        number = error.errno
        text = f"{error.strerror}" + (f": {os.fspath(error.filename)!r}" if error.filename else "")
    return {"kind": type(error).__name__, "errno": number, "text": text}


def _rebuilt(found: dict[str, Any], rank: int) -> Exception:
    """Return the error of another rank, of the same class if it is known."""
    kind, text = found["kind"], f"{found['text']} (on rank {rank})"
    if found["errno"] is not None:
        return OSError(found["errno"], text)
    known = _KINDS.get(kind) or getattr(builtins, kind, None)
    if isinstance(known, type) and issubclass(known, Exception):
        with suppress(TypeError):  # it needs other arguments
            return known(text)
    return RuntimeError(f"{kind}: {text}")
