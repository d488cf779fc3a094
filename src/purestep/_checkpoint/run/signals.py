"""Ctrl-C and SIGTERM as a flag that a training loop reads between steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from purestep._core import checks


class Signals:
    """`received` is true after a signal to stop."""

    received = False


@contextmanager
def signals() -> Iterator[Signals]:
    """Record the first SIGINT or SIGTERM instead of stopping during a step; a second one stops at once.

    A second SIGINT raises `KeyboardInterrupt`, a second SIGTERM `SystemExit` with the status 143.
    Works only in the main thread, as Python's handlers do. Signals that are ignored, as under nohup, stay
    ignored. The previous handlers are restored at the end.

    Raises:
        ValueError: in another thread.

    >>> with signals() as asked:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     asked.received
    True
    """
    asked = Signals()

    def note(number: int, frame: FrameType | None) -> None:
        if asked.received:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        asked.received = True

    if threading.current_thread() is not threading.main_thread():
        raise checks.error("signals", "must be entered in the main thread: Python handles signals there")
    watched = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, note) for number in watched}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
