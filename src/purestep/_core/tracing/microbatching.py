"""The number of microbatches into which the batch of the current loss function was divided."""

from contextvars import ContextVar

from purestep._core import checks

_COUNT: ContextVar[int] = ContextVar("purestep_microbatches", default=1)
_RANKS: ContextVar[int] = ContextVar("purestep_ranks", default=1)


class cut_into:  # noqa: N801
    """Declare that a batch within the block is one of `count` microbatches of one of `ranks` ranks.

    >>> with cut_into(4):
    ...     whole_batch("ntxent", "every row is a negative of all others")
    Traceback (most recent call last):
        ...
    ValueError: ntxent: every row is a negative of all others, got one of microbatches=4; use microbatches=1
    """

    def __init__(self, count: int, ranks: int = 1):
        self._count, self._ranks = count, ranks

    def __enter__(self) -> None:
        self._tokens = _COUNT.set(self._count), _RANKS.set(self._ranks)

    def __exit__(self, *error: object) -> None:
        count, ranks = self._tokens
        _COUNT.reset(count)
        _RANKS.reset(ranks)


def whole_batch(caller: str, why: str, remedy: str = "use microbatches=1") -> None:
    """Raise an error if the batch is a part of the whole one, for a loss that needs the whole batch."""
    if _RANKS.get() > 1:
        raise checks.error(
            caller, f"{why}, got the rows of one of {_RANKS.get()} ranks; use a single process"
        )
    if _COUNT.get() > 1:
        raise checks.error(caller, f"{why}, got one of microbatches={_COUNT.get()}; {remedy}")
