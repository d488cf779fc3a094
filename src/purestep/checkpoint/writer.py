"""One thread that writes in the background: bounded, in order, its failures never lost."""

import sys
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """Runs jobs one after another; a failed job raises from the next call, and from `close`.

    Args:
        limit: jobs that may be under way or waiting; the next one waits for the oldest.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._pending: deque[Future[None]] = deque()
        # The interpreter waits for this thread before it ends, so a job begun is a job finished.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="purestep-checkpoint")
        weakref.finalize(self, _report, self._pending)

    def submit(self, job: Callable[[], None]) -> None:
        """Raise what failed before, wait for room, and start the job."""
        self.check()
        while len(self._pending) >= self._limit:
            self._finish_oldest()
        self._pending.append(self._pool.submit(job))

    def check(self) -> None:
        """Raise the failure of a job that has ended since the last call."""
        while self._pending and self._pending[0].done():
            self._finish_oldest()

    def wait(self) -> None:
        """Wait for every job, and raise the first failure."""
        while self._pending:
            self._finish_oldest()

    def close(self) -> None:
        """Wait for every job, end the thread, and raise the first failure."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _finish_oldest(self) -> None:
        self._pending[0].exception()  # wait first: an interrupted wait must leave the job where it is
        self._pending.popleft().result()


def _report(pending: "deque[Future[None]]") -> None:
    """Say on stderr what failed and was never raised, because nobody closed the writer."""

    def say(job: "Future[None]") -> None:
        error = job.exception()
        if error is not None:
            print(f"purestep: {error}", file=sys.stderr)

    for job in pending:
        job.add_done_callback(say)
