"""Ctrl-C as a question that a loop asks between steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether somebody asked to stop."""

    requested = False


@contextmanager
def noticed() -> Iterator[Interruption]:
    """Note the first SIGINT or SIGTERM instead of raising in the middle of a step; a second SIGINT raises."""
    interruption = Interruption()

    def note(number: int, frame: FrameType | None) -> None:
        if interruption.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        interruption.requested = True

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
