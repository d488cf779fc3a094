"""The side of rank 0: it hears from every rank and decides when the group ends."""

import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from purestep._parallel.channel import Channel
from purestep._parallel.verdicts import Seen, is_of_connection, named, other_program, verdict

_GRACE = 1.0  # seconds from an error of a rank to the end of all
_DELIVERY = 2.0  # seconds for the last message, at most: the end of a process may discard it on its way


class Hub(threading.Thread):
    """Listens to all ranks in a thread of its own.

    Attributes:
        ended: set when every rank has left the watched block.
        ending: whether the end of the group is decided.
    """

    def __init__(
        self,
        listener: socket.socket,
        size: int,
        timeout: float,
        program: Mapping[str, str],
        beats: Callable[[], int | None],
        end: Callable[[str], None],
    ):
        super().__init__(name="purestep watchdog", daemon=True)
        now = time.monotonic()
        self._listener, self._timeout, self._program = listener, timeout, program
        self._beats, self._end = beats, end
        self._seen = {rank: Seen(rank, now) for rank in range(size)}
        self._channels: dict[Channel, int | None] = {}
        self._interval = min(timeout / 10, 1.0)
        self._selector = selectors.DefaultSelector()
        self.ended = threading.Event()
        self.ending = False
        self._failure: tuple[float, str] | None = None  # when the group ends, and why
        self.own: dict[str, Any] | None = None  # how rank 0 left the block

    def run(self) -> None:
        """Listen until all ranks are done or the group ends."""
        try:
            self._listen()
        except Exception as error:
            self._finish(f"the watchdog of rank 0 failed: {error!r}")

    def _listen(self) -> None:
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        before = sent = time.monotonic()
        while not self.ended.is_set():
            for key, _ in self._selector.select(self._interval):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(key.data)
            now = time.monotonic()
            if now - before > self._timeout / 2:
                self._forgive(now - before)  # this process was stopped, and heard nobody meanwhile
            before = now
            self._hear_self(now)
            self._check(now)
            if now - sent >= self._interval:
                sent = now
                self._tell({"kind": "beat"})
        self._tell({"kind": "ended"})

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        channel = Channel(connection)
        self._channels[channel] = None
        self._selector.register(connection, selectors.EVENT_READ, channel)

    def _read(self, channel: Channel) -> None:
        messages = channel.receive()
        rank = self._channels[channel]
        if messages is None:
            self._selector.unregister(channel.socket)
            channel.close()
            del self._channels[channel]
            if rank is not None and not self._seen[rank].done:
                self._finish(f"rank {rank} ended before the others")
            return
        for message in messages:
            rank = self._heard(channel, rank, message)

    def _heard(self, channel: Channel, rank: int | None, message: dict[str, Any]) -> int | None:
        now = time.monotonic()
        if rank is None:
            rank = message.get("rank")
            if message.get("kind") != "hello" or rank not in self._seen:
                return None
            self._channels[channel] = rank
            refused = other_program(self._program, message.get("program", {}), rank)
            if refused:
                self._finish(refused)
            return rank
        self._note(rank, message, now)
        return rank

    def _note(self, rank: int, message: dict[str, Any], now: float) -> None:
        seen = replace(self._seen[rank], heard=now)
        beats = message.get("beats")
        if beats is not None and beats != seen.beats:
            seen = replace(seen, beats=beats, advanced=now)
        if message["kind"] == "done":
            seen = replace(seen, done=True)
        self._seen[rank] = seen
        if message["kind"] == "failed":
            # The error may follow from the end of another rank, which is then found in the meantime. A rank
            # on a machine that is lost is only found by its silence.
            error = str(message.get("error"))
            grace = self._timeout + _GRACE if is_of_connection(error) else _GRACE
            failure = now + grace, f"rank {rank} failed: {error}"
            self._failure = failure if self._failure is None else min(self._failure, failure)

    def _hear_self(self, now: float) -> None:
        left, self.own = self.own, None
        self._note(0, {"kind": "beat", "beats": self._beats()} | (left or {}), now)

    def _forgive(self, seconds: float) -> None:
        for rank, seen in self._seen.items():
            self._seen[rank] = replace(seen, heard=seen.heard + seconds, advanced=seen.advanced + seconds)

    def _check(self, now: float) -> None:
        if all(seen.done for seen in self._seen.values()):
            self.ended.set()
            return
        found = verdict(list(self._seen.values()), now, self._timeout, failing=self._failure is not None)
        if found is None and self._failure is not None and now >= self._failure[0]:
            self._finish(self._failure[1])
        elif found is not None:
            missing = [rank for rank in self._seen if rank and rank not in self._channels.values()]
            absent = [rank for rank in missing if not self._seen[rank].done]
            self._finish(f"{named(absent)} did not join" if absent and "heard" in found else found)

    def _finish(self, reason: str) -> None:
        self.ending = True
        self._tell({"kind": "end", "reason": reason})
        for channel in self._channels:
            channel.finish()
        self._await_ends()
        self._end(reason)

    def _await_ends(self) -> None:
        """Wait until every rank that is well has received the last message: it then closes its connection."""
        start = now = time.monotonic()
        open_ = set(self._channels)
        while open_ and now - start < _DELIVERY:
            for channel in list(open_):
                if channel.receive() is None:
                    open_.discard(channel)
            well = [self._channels[channel] for channel in open_]
            if not any(rank is None or start - self._seen[rank].heard < self._timeout / 2 for rank in well):
                break
            time.sleep(0.01)
            now = time.monotonic()

    def _tell(self, message: dict[str, Any]) -> None:
        for channel in list(self._channels):
            channel.send(message)
