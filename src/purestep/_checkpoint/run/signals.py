"""Ctrl-C and SIGTERM as a flag that a training loop reads between steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from purestep._core import checks


class Signals:
    """`received` is true after a signal to stop. It is the handler of the signals."""

    received = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; stop at the second."""
        if self.received:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.received = True


def watching() -> Signals | None:
    """Return what the innermost open `signals()` gave, or `None` if none is open. Works in each thread."""
    handlers = map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))
    return next((handler for handler in handlers if isinstance(handler, Signals)), None)


@contextmanager
def signals() -> Iterator[Signals]:
    """Record the first SIGINT or SIGTERM instead of stopping during a step; a second one stops at once.

    A second SIGINT raises `KeyboardInterrupt`, a second SIGTERM `SystemExit` with the status 143. Signals
    that are ignored, as under nohup, stay ignored. The previous handlers are restored at the end.

    Within another `signals()` both are the same object: a signal that either received is seen by both, also
    one that arrived before the inner one was opened. `fit` opens one, so a run that begins after a signal
    ends before its first step. Python handles signals in the main thread; another thread can only join.

    Raises:
        ValueError: in another thread, if the main thread has no `signals()` open.

    >>> with signals() as asked:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     with signals() as inner:
    ...         asked.received, inner.received
    (True, True)
    """
    outer = watching()
    if threading.current_thread() is not threading.main_thread():
        if outer is None:
            raise checks.error("signals", "must be entered in the main thread: Python handles signals there")
        yield outer
        return
    asked = Signals() if outer is None else outer
    watched = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, asked) for number in watched}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
