"""The end of a group of processes when one of them dies or hangs."""

import hashlib
import json
import os
import platform
import socket
import sys
import threading
import traceback
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import mlx.core as mx

from purestep._core import checks
from purestep._parallel.groups import group_of
from purestep._parallel.hub import Hub
from purestep._parallel.member import Member

STATUS = 75  # of a process that the watchdog ends: a temporary failure
_HOST = 64  # bytes of an address


class Watchdog:
    """Ends all processes if one of them dies, leaves early or hangs; `watchdog` makes it.

    >>> with watchdog(timeout=60) as dog:
    ...     dog.beat()
    """

    def __init__(self, group: mx.distributed.Group, timeout: float, address: str | None):
        self._group, self._timeout, self._address = group, timeout, address
        self._beats: int | None = None
        self._thread: Hub | Member | None = None

    def beat(self) -> None:
        """Tell that the loop advances: once for each step. `run` and `fit` do so themselves."""
        self._beats = 1 if self._beats is None else self._beats + 1

    def __enter__(self) -> Self:
        if self._group.size() > 1:
            self._thread = self._started()
            self._thread.start()
            if isinstance(self._thread, Member):
                self._thread.joined.wait()
        _watching.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _watching.remove(self)
        thread = self._thread
        if thread is None:
            return
        if error is None:
            thread.own = {"kind": "done"}
            # The hub watches until all ranks are done, and it ends this process if that takes too long.
            thread.ended.wait()
        else:
            if isinstance(error, Exception) and not thread.ending:
                traceback.print_exception(error)
            thread.own = {"kind": "failed", "error": f"{type(error).__name__}: {error}".strip(": ")}
            thread.join()  # it ends the process

    def _started(self) -> Hub | Member:
        """Exchange the address of rank 0 and return the thread of this rank."""
        joined = threading.Event()
        waiting = threading.Thread(target=self._await_all, args=(joined,), daemon=True)
        waiting.start()
        rank, size = self._group.rank(), self._group.size()
        listener = None
        if rank == 0:
            host = self._address or host_of_rank_0()
            listener = socket.create_server((host if host.startswith("127.") else "", 0), backlog=size)
            own = json.dumps([host, listener.getsockname()[1]]).encode().ljust(_HOST)
            if len(own) > _HOST:
                raise checks.error("watchdog", f"address must be shorter than {_HOST - 10}, got {host!r}")
        else:
            own = bytes(_HOST)
        try:
            found: Any = mx.distributed.all_sum(mx.array(list(own), mx.int32), group=self._group).tolist()
        except RuntimeError as error:
            ended(f"a rank ended before it reached watchdog(): {error}")
            raise  # `ended` does not return
        joined.set()
        host, port = json.loads(bytes(found))
        if listener is not None:
            return Hub(listener, size, self._timeout, program(), lambda: self._beats, ended)
        return Member((host, port), rank, self._timeout, program(), lambda: self._beats, ended)

    def _await_all(self, joined: threading.Event) -> None:
        if not joined.wait(self._timeout):
            ended("a rank did not reach watchdog()")


_watching: list[Watchdog] = []  # those that are entered now


def watchdog(
    *,
    timeout: float = 300.0,
    group: mx.distributed.Group | None = None,
    address: str | None = None,
) -> Watchdog:
    """Watch a group of processes: if one dies, leaves early or hangs, all of them end with its name.

    MLX waits forever for a rank that is gone. Within the `with` block, a thread of each process sends a
    heartbeat to rank 0 over TCP. The processes end if

    - a rank ends, at once;
    - a rank is not heard from for `timeout` seconds, such as a stopped process or a lost machine;
    - no rank has advanced for `timeout` seconds. `run` and `fit` tell at every step that they advance; call
      `beat` of the watchdog in a loop of your own. The error names the ranks that are behind;
    - a rank raises an error within the block, a second after its traceback is written. If MLX reports that a
      connection is lost, the rank that is lost is named: when its end is noticed, or after `timeout` seconds;
    - a rank runs another program: the main script, purestep, MLX and Python are compared at the start.

    An operation of MLX that hangs cannot be interrupted. So the watchdog writes the reason to stderr and ends
    the process with status 75, without cleaning up. A run is resumed from its last checkpoint. At the end of
    the block, a rank waits for the others.

    Args:
        timeout: seconds, greater than 0. It must be longer than the longest pause of the loop, such as the
            compilation of a step or the writing of a checkpoint.
        group: the processes; `None` for all that were launched together.
        address: the host name or IP address of rank 0. The default is that of the launcher's environment
            variables, and otherwise the host name of rank 0.

    >>> import purestep as ps
    >>> with ps.parallel.watchdog(timeout=60) as dog:
    ...     for step in range(3):
    ...         dog.beat()
    """
    caller = "watchdog"
    timeout = checks.number(caller, "timeout", timeout, above=0)
    if address is not None and not isinstance(address, str):
        raise TypeError(f"{caller}: address must be a host name or an IP address, got {address!r}")
    return Watchdog(group_of(caller, group), float(timeout), address)


def beat() -> None:
    """Tell the watchdogs of this process that the loop advances."""
    for each in _watching:
        each.beat()


def host_of_rank_0() -> str:
    """Return the address of rank 0 from the variables that `mlx.launch` sets, or this machine's name."""
    hosts = os.environ.get("MLX_HOSTFILE")
    if hosts:
        try:
            return str(json.loads(Path(hosts).read_text())[0][0]).rpartition(":")[0]
        except (OSError, ValueError, LookupError):
            pass
    for name in ("NCCL_HOST_IP", "MLX_JACCL_COORDINATOR"):
        if os.environ.get(name):
            return os.environ[name].partition(":")[0]
    return socket.gethostname()


def program() -> dict[str, str]:
    """Return what must be the same on all ranks."""
    found = {"python": platform.python_version()}
    for name in ("mlx", "purestep"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    main: Any = getattr(sys.modules.get("__main__"), "__file__", None)
    if main is not None and Path(main).is_file():
        content = hashlib.sha256(Path(main).read_bytes()).hexdigest()[:12]
        found[f"script {Path(main).name}"] = content
    return found


def ended(reason: str) -> None:
    """End this process. Nothing is cleaned up: a collective may hang in any thread."""
    try:
        os.write(2, f"watchdog: {reason}; this process ends\n".encode())
    finally:
        os._exit(STATUS)
