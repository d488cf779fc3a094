"""The side of every other rank: it tells rank 0 that it lives, and ends if rank 0 says so or is gone."""

import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from purestep._parallel.channel import Channel


class Member(threading.Thread):
    """Talks to rank 0 in a thread of its own.

    Attributes:
        joined: set when rank 0 will notice the end of this process.
        ended: set when every rank has left the watched block.
        ending: whether the end of the group is decided.
    """

    def __init__(
        self,
        address: tuple[str, int],
        rank: int,
        timeout: float,
        program: Mapping[str, str],
        beats: Callable[[], int | None],
        end: Callable[[str], None],
    ):
        super().__init__(name="purestep watchdog", daemon=True)
        self._address, self._rank, self._timeout, self._program = address, rank, timeout, program
        self._beats, self._end = beats, end
        self._interval = min(timeout / 10, 1.0)
        self.joined, self.ended = threading.Event(), threading.Event()
        self.ending = False
        self.own: dict[str, Any] | None = None  # how this rank left the block

    def run(self) -> None:
        """Talk until all ranks are done or the group ends."""
        try:
            self._talk()
        except Exception as error:
            self._finish(f"the watchdog of rank {self._rank} failed: {error!r}")

    def _talk(self) -> None:
        try:
            connection = socket.create_connection(self._address, timeout=self._timeout)
        except OSError as error:
            host, port = self._address
            self._finish(f"rank 0 cannot be reached at {host}:{port}: {error}")
            return
        channel = Channel(connection)
        channel.send({"kind": "hello", "rank": self._rank, "program": dict(self._program)})
        self.joined.set()
        waiting = selectors.DefaultSelector()  # select.select takes only descriptors below 1024
        waiting.register(connection, selectors.EVENT_READ)
        heard = before = time.monotonic()
        while True:
            left = self.own
            is_done = left is not None
            channel.send({"kind": "beat", "beats": self._beats()} | (left or {}))
            waiting.select(self._interval)
            messages = channel.receive()
            now = time.monotonic()
            if now - before > self._timeout / 2:
                heard += now - before  # this process was stopped, and heard nothing meanwhile
            before = now
            if messages is None:
                if is_done:  # rank 0 was the last to end
                    self.ended.set()
                else:
                    self._finish("rank 0 ended before the others")
                return
            if self._told(messages):
                return
            heard = now if messages else heard
            if now - heard > self._timeout:
                self._finish(f"rank 0 has not been heard from for {now - heard:.0f} s")
                return

    def _finish(self, reason: str) -> None:
        self.ending = True
        self._end(reason)

    def _told(self, messages: list[dict[str, Any]]) -> bool:
        """Follow the messages of rank 0; return whether it is the end."""
        for message in messages:
            if message.get("kind") == "ended":
                self.ended.set()
                return True
            if message.get("kind") == "end":
                self._finish(str(message.get("reason")))
                return True
        return False
