"""What a check says, a check that cannot fail with a traceback, and rates in words."""

from collections.abc import Callable
from typing import Any, NamedTuple

OK, ADVICE, WRONG = "ok", "advice", "wrong"


class Finding(NamedTuple):
    """The answer of one check.

    Attributes:
        name: of the check.
        state: `ok`; `advice`, if training works but could be faster or safer; `wrong`, if something fails.
        said: what was found, in one sentence.
        remedy: what to do about it; empty for `ok`.
        figures: the measured numbers and facts, for `--json`.
    """

    name: str
    state: str
    said: str
    remedy: str = ""
    figures: dict[str, Any] = {}  # noqa: RUF012  (never changed)


def checked(name: str, check: Callable[[], Finding | None]) -> Finding | None:
    """Run a check; an unexpected error becomes a finding."""
    try:
        return check()
    except Exception as error:  # one broken check must not hide the others
        said = f"this check failed: {type(error).__name__}: {error}"
        return Finding(name, WRONG, _short(said), "Fix the cause that the message names and run doctor again")


def rate_text(rate: float, unit: str) -> str:
    """Return a rate with a prefix.

    >>> rate_text(4.2e9, "FLOP/s"), rate_text(3.35e12, "B/s")
    ('4.2 GFLOP/s', '3.35 TB/s')
    """
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if rate >= size:
            return f"{rate / size:.3g} {prefix}{unit}"
    return f"{rate:.3g} {unit}"


def _short(text: str, most: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]}..."
