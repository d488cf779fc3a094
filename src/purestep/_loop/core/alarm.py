"""The end of a run whose ranks cannot act together any more: no operation of MLX notices it for sure."""

import os
import selectors
import socket
import threading
from collections.abc import Mapping

from purestep._parallel.channel import Channel
from purestep._parallel.watchdog import STATUS

_GRACE = 5.0  # seconds in which the loop may notice it by itself, and raise an error


class Alarm(threading.Thread):
    """Notices that another rank has died or failed, while the loop waits for the device.

    A thread reads one connection of each other rank on rank 0, and that of rank 0 on the others. If the run
    cannot go on, the loop has a few seconds to raise an error. Then the process ends, because an operation of
    MLX that hangs cannot be interrupted.

    Args:
        caller: names the public function in errors.
        connections: by rank.

    Attributes:
        reason: why the run cannot go on, or `None`.
        gone: whether a rank has ended already. Otherwise the one that failed still takes part in a round.
    """

    def __init__(self, caller: str, connections: Mapping[int, socket.socket]):
        super().__init__(name="purestep ranks", daemon=True)
        self._caller = caller
        self._channels = {rank: Channel(each) for rank, each in connections.items()}
        self._left = threading.Event()
        self._noticed = threading.Event()
        self._woken, self._wake = socket.socketpair()
        self._heeded = False  # the loop ends by itself
        self.reason: str | None = None
        self.gone = False

    def run(self) -> None:
        """Listen until this rank leaves the run, or the run cannot go on."""
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._woken, selectors.EVENT_READ)
            for rank, channel in self._channels.items():
                waiting.register(channel.socket, selectors.EVENT_READ, (rank, channel))
            while not self._left.is_set() and self.reason is None:
                for key, _ in waiting.select():
                    if key.data is not None and not self._follow(*key.data):
                        waiting.unregister(key.fileobj)
        if self.reason is not None and not self._left.wait(_GRACE) and not self._heeded:
            _end(f"{self._caller}: {self.reason}")

    def fail(self, reason: str) -> None:
        """Tell the others that this rank ends, and why; its loop raises the error."""
        self._heeded = True
        self._tell(reason, gone=False)

    def heed(self) -> None:
        """Note that the loop of this rank knows the reason, and ends by itself."""
        self._heeded = True

    def awaited(self, seconds: float) -> str | None:
        """Return why the run cannot go on; wait for it for a while."""
        self._noticed.wait(seconds)
        return self.reason

    def close(self, *, well: bool) -> None:
        """Leave the run.

        Args:
            well: whether the others may do so too. Otherwise they end.
        """
        for channel in self._channels.values() if well else ():
            channel.send({"left": True})
        self._left.set()
        self._wake.close()
        self.join(1.0)
        for channel in self._channels.values():
            channel.finish()
            channel.close()
        self._woken.close()

    def _follow(self, rank: int, channel: Channel) -> bool:
        """Read what a rank says; return whether it may say more."""
        messages = channel.receive()
        if messages is None:
            self._notice(f"rank {rank} ended before the others", gone=True)
            return False
        for message in messages:
            if "left" in message:
                return False
            if "reason" in message:
                self._notice(message["reason"], gone=message["gone"])
                return False
        return True

    def _notice(self, reason: str, *, gone: bool) -> None:
        self.reason, self.gone = reason, gone
        self._tell(reason, gone=gone)  # rank 0 tells all others
        self._noticed.set()

    def _tell(self, reason: str, *, gone: bool) -> None:
        for channel in self._channels.values():
            channel.send({"reason": reason, "gone": gone})


def _end(reason: str) -> None:
    try:
        os.write(2, f"{reason}; this process ends\n".encode())
    finally:
        os._exit(STATUS)
