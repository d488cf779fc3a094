"""Whether the current loss function receives a whole batch or one of several microbatches."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from purestep._core import checks

_COUNT: ContextVar[int] = ContextVar("purestep_microbatches", default=1)


@contextmanager
def cut_into(count: int) -> Iterator[None]:
    """Mark batches as one of `count` microbatches, for all calls within the block.

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
    """Raise an error inside of a microbatch, for a loss that is defined on the whole batch."""
    if _COUNT.get() > 1:
        raise checks.error(caller, f"{why}, got one of microbatches={_COUNT.get()}; {remedy}")
