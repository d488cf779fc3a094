"""A background thread that runs jobs in order and reports every error."""

import sys
import traceback
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """Runs jobs one after another. `make_room` returns the errors of failed jobs; the others raise them.

    Args:
        limit: the number of unfinished jobs. `make_room` waits for the oldest if there are more.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._pending: deque[Future[None]] = deque()
        # The interpreter waits for this thread at exit, so every job is finished.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="purestep-checkpoint")
        weakref.finalize(self, _report, self._pending)

    def make_room(self) -> list[BaseException]:
        """Wait for room and return the errors of earlier jobs."""
        failures: list[BaseException] = []
        while self._pending and (self._pending[0].done() or len(self._pending) >= self._limit):
            failures += self._finish_oldest()
        return failures

    def start(self, job: Callable[[], None]) -> None:
        """Start a job."""
        self._pending.append(self._pool.submit(_run, job))

    def idle(self) -> None:
        """Wait for every job, and keep their errors for the next call that raises."""
        for job in list(self._pending):
            job.exception()

    def wait(self) -> None:
        """Wait for every job and raise their errors."""
        failures = []
        while self._pending:
            failures += self._finish_oldest()
        raise_first(failures)

    def close(self, last: Callable[[], None]) -> None:
        """Wait for every job, run a last one, end the thread, and raise errors.

        The last job runs after all others, even if the wait is interrupted.
        """
        self._pool.submit(last)
        self._pool.shutdown(wait=False)
        self.wait()
        self._pool.shutdown()

    def _finish_oldest(self) -> list[BaseException]:
        error = self._pending[0].exception()  # An interrupted wait must not remove the job.
        self._pending.popleft()
        return [] if error is None else [error]


def _run(job: Callable[[], None]) -> None:
    try:
        job()
    except BaseException as error:
        # Until the error is raised, its frames would keep arrays in memory.
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        raise


def raise_first(failures: list[BaseException]) -> None:
    """Raise the first error, with notes of the others."""
    if failures:
        for other in failures[1:]:
            failures[0].add_note(f"and then: {other}")
        raise failures[0]


def _report(pending: "deque[Future[None]]") -> None:
    """Print the errors that were never raised because the writer was not closed."""

    def say(job: "Future[None]") -> None:
        error = job.exception()
        if error is not None:
            print(f"purestep: {error}", file=sys.stderr)

    for job in pending:
        job.add_done_callback(say)
