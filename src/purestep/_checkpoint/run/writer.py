"""One thread that writes in the background: bounded, in order, its failures never lost."""

import sys
import traceback
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
        """Wait for room and start the job; then raise what failed before, which is not this job's fault."""
        failures = []
        while self._pending and (self._pending[0].done() or len(self._pending) >= self._limit):
            failures += self._finish_oldest()
        self._pending.append(self._pool.submit(_run, job))
        _raise(failures)

    def wait(self) -> None:
        """Wait for every job, and raise what failed."""
        failures = []
        while self._pending:
            failures += self._finish_oldest()
        _raise(failures)

    def close(self, last: Callable[[], None]) -> None:
        """Wait for every job, run a last one after them, end the thread, and raise what failed.

        However the waiting is interrupted, the last job runs only when all the others have ended.
        """
        self._pool.submit(last)
        self._pool.shutdown(wait=False)
        self.wait()
        self._pool.shutdown()

    def _finish_oldest(self) -> list[BaseException]:
        error = self._pending[0].exception()  # an interrupted wait leaves the job where it is
        self._pending.popleft()
        return [] if error is None else [error]


def _run(job: Callable[[], None]) -> None:
    try:
        job()
    except BaseException as error:
        # Until somebody hears of it the error would keep the arrays of its frames in memory.
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        raise


def _raise(failures: list[BaseException]) -> None:
    if failures:
        for other in failures[1:]:
            failures[0].add_note(f"and then: {other}")
        raise failures[0]


def _report(pending: "deque[Future[None]]") -> None:
    """Say on stderr what failed and was never raised, because nobody closed the writer."""

    def say(job: "Future[None]") -> None:
        error = job.exception()
        if error is not None:
            print(f"purestep: {error}", file=sys.stderr)

    for job in pending:
        job.add_done_callback(say)
