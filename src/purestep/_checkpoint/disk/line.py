"""A thread that processes items in order, also while the interpreter exits."""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any


class Line:
    """Call `work(item)` for each item, in order, in a thread that ends with the `with` block.

    An executor refuses work after the main thread has ended, when saves may still be running.
    """

    def __init__(self, work: Callable[[Any], Any]):
        self._work = work
        self._results: list[Any] = []
        self._errors: list[BaseException] = []
        self._items: queue.SimpleQueue[tuple[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def give(self, item: Any) -> None:
        """Add an item; if no thread could be started, it is processed immediately."""
        if self._thread is None:
            self._do(item)
        else:
            self._items.put((item,))

    def results(self) -> list[Any]:
        """Return the result of every item after the block, or raise the first error."""
        if self._errors:
            raise self._errors.pop()  # kept nowhere else: a cycle would keep the frames of the error
        return self._results

    def __enter__(self) -> "Line":
        thread = threading.Thread(target=self._run)
        with suppress(RuntimeError):  # no thread can be started: items are processed when they are added
            thread.start()
            self._thread = thread
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        thread, self._thread = self._thread, None  # its target is a method of this object: a reference cycle
        if thread is not None:
            self._items.put(None)
            thread.join()

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            self._do(item[0])
            del item

    def _do(self, item: Any) -> None:
        if self._errors:
            return
        try:
            self._results.append(self._work(item))
        except BaseException as error:
            self._errors.append(error)
