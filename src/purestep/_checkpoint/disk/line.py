"""A thread that does one kind of work, item after item, also while the interpreter is ending."""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any


class Line:
    """Does `work(item)` for each item given, in order, in a thread that ends with the `with` block.

    An executor takes no work once the main thread has ended, when saves may still be under way.
    """

    def __init__(self, work: Callable[[Any], Any]):
        self._work = work
        self._results: list[Any] = []
        self._errors: list[BaseException] = []
        self._items: queue.SimpleQueue[tuple[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def give(self, item: Any) -> None:
        """Hand over an item; it is done here and now where no thread could be had."""
        if self._thread is None:
            self._do(item)
        else:
            self._items.put((item,))

    def results(self) -> list[Any]:
        """Return the result of every item, once the block has ended, or raise what the first failure was."""
        if self._errors:
            raise self._errors.pop()  # held nowhere else: a cycle would keep what its frames hold
        return self._results

    def __enter__(self) -> "Line":
        thread = threading.Thread(target=self._run)
        with suppress(RuntimeError):  # there are no more threads: work is done as it is given
            thread.start()
            self._thread = thread
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        thread, self._thread = self._thread, None  # whose target is a method of this: a cycle
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
