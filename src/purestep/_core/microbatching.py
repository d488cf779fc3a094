"""Whether the batch of a loss function is the whole batch or one microbatch."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from purestep._core import checks

_COUNT: ContextVar[int] = ContextVar("purestep_microbatches", default=1)


@contextmanager
def cut_into(count: int) -> Iterator[None]:
    """Declare, within the `with` block, that batches are one of `count` microbatches.

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
    """Refuse to compute a loss that needs the whole batch from a microbatch."""
    if _COUNT.get() > 1:
        raise checks.error(caller, f"{why}, got one of microbatches={_COUNT.get()}; {remedy}")
