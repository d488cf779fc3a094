"""Ctrl-C and SIGTERM as a question that a loop asks between steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Signals:
    """Whether somebody asked the process to stop."""

    received = False


@contextmanager
def signals() -> Iterator[Signals]:
    """Note the first SIGINT or SIGTERM instead of stopping in the middle of a step; a second SIGINT raises.

    Works in the main thread only, as handlers do. The handlers that were there come back at the end.

    >>> with signals() as asked:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     asked.received
    True
    """
    asked = Signals()

    def note(number: int, frame: FrameType | None) -> None:
        if asked.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.received = True

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
