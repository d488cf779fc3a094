"""The number of microbatches into which the batch of the current loss function was divided."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from purestep._core import checks

_COUNT: ContextVar[int] = ContextVar("purestep_microbatches", default=1)
_RANKS: ContextVar[int] = ContextVar("purestep_ranks", default=1)


@contextmanager
def cut_into(count: int, ranks: int = 1) -> Iterator[None]:
    """Declare that a batch within the block is one of `count` microbatches of one of `ranks` ranks.

    >>> with cut_into(4):
    ...     whole_batch("ntxent", "every row is a negative of all others")
    Traceback (most recent call last):
        ...
    ValueError: ntxent: every row is a negative of all others, got one of microbatches=4; use microbatches=1
    """
    token, ranks_token = _COUNT.set(count), _RANKS.set(ranks)
    try:
        yield
    finally:
        _COUNT.reset(token)
        _RANKS.reset(ranks_token)


def whole_batch(caller: str, why: str, remedy: str = "use microbatches=1") -> None:
    """Raise an error if the batch is a part of the whole one, for a loss that needs the whole batch."""
    if _RANKS.get() > 1:
        raise checks.error(
            caller, f"{why}, got the rows of one of {_RANKS.get()} ranks; use a single process"
        )
    if _COUNT.get() > 1:
        raise checks.error(caller, f"{why}, got one of microbatches={_COUNT.get()}; {remedy}")
