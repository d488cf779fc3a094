"""What runs while a call of the system fails, and what must hold after it: the parts that all share."""

import gc
import os
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

DEAD = 2**22 - 7  # no process has this number here
HIDDEN = re.compile(r"^\..*tmp")


class Operation(NamedTuple):
    """An operation under fault.

    Attributes:
        prepare: fills an empty directory, without faults.
        act: `act(directory, armed, say)` runs under faults inside `with armed:`; `say` notes what is claimed.
        check: `check(directory, outcome)` yields complaints, those of messages marked by a leading `!`.
    """

    prepare: Callable[[Path], object]
    act: Callable[..., Any]
    check: Callable[..., Any]


class Outcome(NamedTuple):
    """How an operation ended: what it said, its error, and what it returned; killed, it has only said."""

    said: list[str]
    error: BaseException | None
    value: Any
    killed: bool


def state(n: float) -> dict[str, Any]:
    """Return a state that is told from others by its bits, in two files of a checkpoint."""
    return {
        "params": {"w": mx.full((40,), float(n)), "b": mx.full((7,), float(n), mx.bfloat16)},
        "opt": (mx.arange(30) * int(n), None, {}),
        "step": mx.array(int(n)),
    }


LIKE = state(0)


def reading(prepare: Callable[[Path], object], read: Callable[[Path], Any], right: Callable[[Any], bool]):
    """Return an operation that only reads: nothing is damaged, so nothing else may be returned or claimed."""

    def act(directory: Path, armed: Any, say: Any) -> Any:
        with armed, warnings.catch_warnings():
            warnings.simplefilter("error")
            return read(directory)

    def check(directory: Path, outcome: Outcome) -> Any:
        if not outcome.killed and outcome.error is None and not right(outcome.value):
            yield f"returned {outcome.value}"
        if not right(read(directory)):
            yield "is changed by reading"

    return Operation(prepare, act, check)


def left_over(directory: Path) -> list[str]:
    found = [entry.name for entry in directory.rglob("*") if HIDDEN.match(entry.name)]
    return [f"left over: {found}"] if found else []


def complaints_of(error: BaseException, directory: Path) -> Any:
    """Yield what is wrong with an error: its kind, and whether it names the place."""
    if not isinstance(error, OSError) or isinstance(error, FileNotFoundError):
        yield f"!{type(error).__name__}: {error}"
    elif str(directory) not in str(error):
        yield f"!names no path: {error!r}"


def nothing(directory: Path) -> None:
    """Prepare nothing."""


def resources() -> tuple[int, set[str]]:
    """Return how many descriptors are open and which threads Python has."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), {thread.name for thread in threading.enumerate()}
