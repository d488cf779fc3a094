"""Rounds in which all ranks of a run exchange a message, over TCP: no device waits for them."""

import json
import secrets
import socket
import time
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from purestep._parallel.watchdog import host_of_rank_0

_WAIT = 60.0  # seconds for all ranks to connect
_FIELD = 128  # bytes of the address of rank 0, with a key that strangers do not know


class LostError(RuntimeError):
    """A rank has ended, or cannot be reached."""


class Lockstep:
    """Connections of rank 0 to all others. Every rank makes the same rounds in the same order.

    Rank 0 collects the messages of a round and sends all of them to every rank. A round takes one round trip
    and no operation of MLX, so it neither waits for a device nor is delayed by one.

    Args:
        caller: names the public function in errors.
        group: more than one process. All of them must make this object at the same place.
    """

    def __init__(self, caller: str, group: mx.distributed.Group):
        self._caller, self.rank, self.size = caller, group.rank(), group.size()
        listener, host, key = None, "", secrets.token_hex(8)
        if self.rank == 0:
            host = host_of_rank_0()
            listener = socket.create_server((host if host.startswith("127.") else "", 0), backlog=self.size)
        port = listener.getsockname()[1] if listener is not None else 0
        host, port, key = _from_rank_0(group, [host, port, key])
        try:
            self._others = self._accepted(listener, key) if listener else [self._connected(host, port, key)]
        finally:
            if listener is not None:
                listener.close()

    def exchange(self, message: dict[str, Any], *, limit: float | None = None) -> list[dict[str, Any]]:
        """Return the messages of all ranks.

        Args:
            message: JSON values.
            limit: the most seconds to wait for the others; `None` waits as long as they live.

        Raises:
            LostError: if a rank has ended, or has not answered in time; the message names it.
        """
        for other in self._others:
            other.limit(limit)
        if self.rank:
            hub = self._others[0]
            if not hub.send(message):
                raise self._lost(0)
            found = hub.receive()
            if found is None or "lost" in found:
                raise self._lost(0 if found is None else found["lost"])
            return found["all"]
        found = [message, *(other.receive() for other in self._others)]
        lost = next((rank for rank, each in enumerate(found) if each is None), None)
        for other in self._others:  # one that has ended since is noticed in the next round
            other.send({"all": found} if lost is None else {"lost": lost})
        if lost is not None:
            raise self._lost(lost)
        return [each for each in found if each is not None]

    def close(self) -> None:
        """Close the connections; what was sent still arrives."""
        for other in self._others:
            other.close()

    def _lost(self, rank: int) -> LostError:
        return LostError(f"{self._caller}: rank {rank} ended before the others")

    def _accepted(self, listener: socket.socket, key: str) -> "list[_Line]":
        deadline = time.monotonic() + _WAIT
        found: dict[int, _Line] = {}
        while len(found) < self.size - 1:
            listener.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                missing = sorted({*range(1, self.size)} - {*found})
                raise LostError(f"{self._caller}: rank {missing[0]} did not connect to rank 0") from None
            line = _Line(connection)
            line.limit(_WAIT)
            hello = line.receive()
            if hello is None or hello.get("key") != key:
                line.close()
                continue
            line.rank = hello["rank"]
            found[line.rank] = line
        return [found[rank] for rank in sorted(found)]

    def _connected(self, host: str, port: int, key: str) -> "_Line":
        try:
            connection = socket.create_connection((host, port), timeout=_WAIT)
        except OSError as error:
            raise LostError(
                f"{self._caller}: rank {self.rank} cannot reach rank 0 at {host}:{port}: {error}"
            ) from None
        line = _Line(connection)
        line.send({"rank": self.rank, "key": key})
        return line


class _Line:
    """One end of a connection; messages are lines of JSON."""

    def __init__(self, connection: socket.socket):
        self.rank = 0
        self._socket, self._file = connection, connection.makefile("rb")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def limit(self, seconds: float | None) -> None:
        """Wait at most so long for a message."""
        self._socket.settimeout(seconds)

    def send(self, message: dict[str, Any]) -> bool:
        """Send a message; return whether the other end is there."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """Wait for a message; return `None` if none comes, or if it is not one of a rank."""
        try:
            found = json.loads(self._file.readline() or b"null")
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def close(self) -> None:
        """Close this end."""
        self._file.close()
        self._socket.close()


def _from_rank_0(group: mx.distributed.Group, own: Sequence[Any]) -> Any:
    """Return the plain values of rank 0, on every rank."""
    text = json.dumps(own).encode() if group.rank() == 0 else b""
    if len(text) > _FIELD:
        raise ValueError(f"the address of rank 0 must be shorter than {_FIELD} bytes, got {own[0]!r}")
    row = mx.array(list(text.ljust(_FIELD, b" " if text else b"\0")), mx.int32)
    found: Any = mx.distributed.all_sum(row, group=group).tolist()
    return json.loads(bytes(found))
