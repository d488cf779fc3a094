"""Jobs that run in their order on a thread, so that a slow library or network never stops training."""

import queue
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

Job: TypeAlias = Callable[[], object]


class Worker:
    """Runs jobs one after the other. A job that raises is noted, and the next one runs.

    Args:
        name: of the thread.
        threaded: whether jobs run on a thread.
        after: an earlier worker whose jobs run before.
        most: jobs that may wait.

    Attributes:
        failure: the first error of a job.
        dropped: jobs that were refused because too many were waiting.
    """

    def __init__(self, name: str, *, threaded: bool = True, after: "Worker | None" = None, most: int = 1000):
        self.failure: Exception | None = None
        self.dropped = 0
        self._waiting: queue.Queue[Job | None] = queue.Queue(most)
        self._thread: threading.Thread | None = None
        self._before = None if after is None else after._thread
        if threaded:
            self._thread = threading.Thread(target=self._run, name=f"purestep {name}", daemon=True)
            self._thread.start()

    def post(self, job: Job) -> None:
        """Run a job: on the thread after those before, or at once without a thread."""
        if self._thread is None:
            self._attempt(job)
            return
        try:
            self._waiting.put_nowait(job)
        except queue.Full:
            self.dropped += 1

    def finish(self, last: Job, seconds: float) -> bool:
        """Run the last job and wait until all have run, at most so many seconds; return whether they have."""
        if self._thread is None:
            self._attempt(last)
            return True
        until = time.monotonic() + seconds
        try:
            for job in (last, None):
                self._waiting.put(job, timeout=max(0.0, until - time.monotonic()))
        except queue.Full:
            return False
        self._thread.join(max(0.0, until - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        if self._before is not None:
            self._before.join()
            self._before = None
        while (job := self._waiting.get()) is not None:
            try:
                self._attempt(job)
            except BaseException as error:  # a library that exits must not end the thread unseen
                self.failure = self.failure or RuntimeError(f"{type(error).__name__}: {error}")

    def _attempt(self, job: Job) -> None:
        try:
            job()
        except Exception as error:
            self.failure = self.failure or error.with_traceback(None)
