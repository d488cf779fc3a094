"""Lines of JSON over a TCP connection."""

import json
import socket
from contextlib import suppress
from typing import Any


class Channel:
    """One end of a connection; messages are dicts of plain values."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self._received = b""

    def send(self, message: dict[str, Any]) -> bool:
        """Send a message; return whether the connection is still there. A full buffer drops the message."""
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except BlockingIOError:  # the other end reads nothing: it will be found silent
            return True
        except OSError:
            return False
        return True

    def receive(self) -> list[dict[str, Any]] | None:
        """Return the messages that have come, or `None` if the other end is closed."""
        closed = False
        try:
            while True:
                data = self.socket.recv(1 << 16)
                if not data:
                    closed = True
                    break
                self._received += data
        except BlockingIOError:
            pass
        except OSError:
            closed = True
        *lines, self._received = self._received.split(b"\n")
        found = []
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # a stranger on the port
            if isinstance(message, dict):
                found.append(message)
        return found if found or not closed else None

    def finish(self) -> None:
        """Send no more; what was sent still arrives."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()
