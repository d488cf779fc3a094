"""Curves in a line of text."""

import math
from collections.abc import Sequence

_LEVELS = "▁▂▃▄▅▆▇█"
_ASCII = "_.-~=+*#"


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """Return values as `width` blocks, from the lowest value to the highest; a gap is a space.

    Each block is the mean of the finite values that it stands for. An infinite value is a gap.

    >>> sparkline([3.0, 2.0, 1.0, float("nan"), 1.0], 5)
    '█▅▁ ▁'
    """
    levels = _ASCII if ascii_only else _LEVELS
    width = min(width, len(values))
    means = []
    for piece in range(width):
        among = values[piece * len(values) // width : (piece + 1) * len(values) // width]
        finite = [value for value in among if math.isfinite(value)]
        means.append(math.fsum(value / len(finite) for value in finite) if finite else math.nan)
    seen = [mean for mean in means if math.isfinite(mean)]
    if not seen:
        return " " * width
    low, high = min(seen), max(seen)
    spread = high - low
    if not math.isfinite(spread):  # the range of a float is less than the spread
        low, high, spread = low / 4, high / 4, high / 4 - low / 4
        means = [mean / 4 for mean in means]
    last = len(levels) - 1
    return "".join(
        " " if not math.isfinite(mean) else levels[round((mean - low) / spread * last) if spread else 0]
        for mean in means
    )
