"""Batches prepared ahead of the loop by one thread."""

import atexit
import copy
import queue
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

import mlx.core as mx

from purestep._core import tree
from purestep._loop.running.cursor import AtCursor, Cursor, Drawn, PassCursor

_FOREIGN = "in current thread"  # MLX's error for a lazy array that another thread made
INTERRUPTED: Any = object()
_POLL = 0.2  # seconds between two looks at the flag to stop, while the queue is full or empty


class Feed:
    """The batches of a cursor, at most `most` of them.

    The first batch is drawn on the thread of the loop: this evaluates lazy arrays that the source holds,
    which no other thread can evaluate. Later batches are drawn and evaluated by a thread of the feed, at most
    `prefetch` ahead. With `prefetch=0` every batch is drawn on the thread of the loop.

    Each thread has a global random stream of its own in MLX. That of the feed continues the one of the loop,
    and the loop's continues it at the end: a source that draws without a key gives the same batches with and
    without the thread.
    """

    def __init__(self, cursor: Cursor, most: int | None, prefetch: int):
        self._cursor, self._left, self._prefetch = cursor, most, prefetch
        self._worker: _Worker | None = None
        self._begun = False

    def next(self, state: Any, interrupted: Callable[[], bool] = bool) -> Drawn | None:
        """Return the next batch, `None` after the last one, or `INTERRUPTED`.

        Args:
            state: the state, for an on-policy source.
            interrupted: tells whether to return `INTERRUPTED` instead of waiting. An iterable is still read
                if it needs no thread: only the next batch tells whether it has ended.
        """
        if self._left is not None:
            if self._left == 0:
                return None
            self._left -= 1
        if interrupted() and not isinstance(self._cursor, PassCursor):
            return INTERRUPTED
        if not self._begun or not self._prefetch:
            drawn = self._cursor.draw(state)
            if self._prefetch and drawn is not None:
                mx.eval(_arrays(drawn))
            self._begun = True
            return drawn
        if self._worker is None:
            self._worker = _Worker(self._cursor, self._left, self._prefetch)
        found = self._worker.take(interrupted)
        if found is _HANDED_OVER:
            self._prefetch = 0
            return self._cursor.draw(state)
        return found

    def agreed(self, drawn: Drawn) -> Drawn | None:
        """Return the batch of a step that is built: with one process nothing is agreed on."""
        return drawn

    def failed(self, error: Exception) -> Exception:
        """Return the error of a batch or of a step, to be raised."""
        return error

    @property
    def lost(self) -> bool:
        """Whether a step that was sent ahead may never be done."""
        return False

    def close(self) -> None:
        """End the thread. A thread that waits for a slow source ends after its next batch."""
        if self._worker is not None:
            self._worker.close(continued=not self.lost)

    def __enter__(self) -> "Feed":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_HANDED_OVER: Any = object()
_LIVE: "weakref.WeakSet[_Worker]" = weakref.WeakSet()


class _Worker:
    """The thread, and the queue between it and the loop."""

    def __init__(self, cursor: Cursor, left: int | None, prefetch: int):
        self._queue: queue.Queue[Any] = queue.Queue(prefetch)
        self._stop = threading.Event()
        self._key = _stream()
        self._drawn: list[mx.array] = []  # the stream of the thread after its last batch
        left = None if left is None else left + 1
        # The thread does not refer to this object, so an abandoned loop does not keep it alive.
        self._thread = threading.Thread(
            target=_work,
            args=(cursor, left, self._queue, self._stop, mx.default_device(), self._key, self._drawn),
            name="purestep-batches",
            daemon=True,
        )
        self._thread.start()
        _LIVE.add(self)

    def take(self, interrupted: Callable[[], bool]) -> Drawn | None:
        """Return what the thread has prepared; raise its error."""
        while True:
            try:
                found = self._queue.get(timeout=_POLL)
                break
            except queue.Empty:
                if interrupted():
                    return INTERRUPTED
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self, *, continued: bool = True) -> None:
        """Ask the thread to end, and wait for it for a while.

        Args:
            continued: whether the loop's random stream continues the thread's. That waits for the device.
        """
        self._stop.set()
        try:
            while True:
                self._queue.get_nowait()
        except queue.Empty:
            pass
        self._thread.join(timeout=1.0)
        if not continued:
            return
        if self._drawn and mx.array_equal(_stream(), self._key).item():  # The loop itself drew nothing.
            _set_stream(self._drawn.pop())


@atexit.register
def _close_all() -> None:
    """End the threads before the interpreter does: one within MLX would crash the exit."""
    for worker in list(_LIVE):
        worker.close(continued=False)


def _work(
    cursor: Cursor,
    left: int | None,
    out: "queue.Queue[Any]",
    stop: threading.Event,
    device: mx.Device,
    key: mx.array,
    drawn: list[mx.array],
) -> None:
    mx.set_default_device(device)
    _set_stream(key)
    _prepare(cursor, left, out, stop)
    drawn.append(_stream())


def _stream() -> mx.array:
    """Return a copy of this thread's global random stream, evaluated, so that another thread may use it."""
    streams: Any = mx.random.state
    now = copy.copy(streams[0])
    mx.eval(now)
    return now


def _set_stream(key: mx.array) -> None:
    streams: Any = mx.random.state
    streams[0][:] = key


def _prepare(cursor: Cursor, left: int | None, out: "queue.Queue[Any]", stop: threading.Event) -> None:
    while not stop.is_set() and left != 0:
        at = cursor.step if isinstance(cursor, AtCursor) else None
        try:
            drawn = cursor.draw(None)
            if drawn is not None:
                _evaluate(drawn, retry=at is None)
        except BaseException as error:  # also SystemExit: the loop would wait for ever
            if at is not None and _FOREIGN in str(error):
                cursor.step = at  # type: ignore[attr-defined]
                _put(out, _HANDED_OVER, stop)
            else:
                _put(out, error, stop)
            return
        _put(out, drawn, stop)
        if drawn is None:
            return
        left = None if left is None else left - 1


def _evaluate(drawn: Drawn, *, retry: bool) -> None:
    """Evaluate a batch, unless only the thread of the loop can."""
    try:
        mx.eval(_arrays(drawn))
    except RuntimeError as error:
        if not (retry and _FOREIGN in str(error)):
            raise


def _arrays(drawn: Drawn) -> list[mx.array]:
    return [leaf for leaf in tree.leaves(drawn.batch) if isinstance(leaf, mx.array)]


def _put(out: "queue.Queue[Any]", item: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            out.put(item, timeout=_POLL)
            return
        except queue.Full:
            continue
