"""The number of microbatches into which the batch of the current loss function was divided."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from purestep._core import checks

_COUNT: ContextVar[int] = ContextVar("purestep_microbatches", default=1)


@contextmanager
def cut_into(count: int) -> Iterator[None]:
    """Declare that a batch within the block is one of `count` microbatches.

    >>> with cut_into(4):
    ...     whole_batch("ntxent", "every row is a negative of all others")
    Traceback (most recent call last):
        ...
    ValueError: ntxent: every row is a negative of all others, got one of microbatches=4; use microbatches=1
    """
    token = _COUNT.set(count)
    try:
        yield
    finally:
        _COUNT.reset(token)


def whole_batch(caller: str, why: str, remedy: str = "use microbatches=1") -> None:
    """Raise an error if the batch is one of several microbatches, for a loss that needs the whole batch."""
    if _COUNT.get() > 1:
        raise checks.error(caller, f"{why}, got one of microbatches={_COUNT.get()}; {remedy}")
