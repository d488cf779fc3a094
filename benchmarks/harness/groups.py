"""Groups of processes on this machine, connected as `mlx.launch` and `torchrun` connect them."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple


class Ended(NamedTuple):
    """How a process of a group ended.

    Attributes:
        status: its exit status; `None` if it had no more time and was killed.
        output: what it printed.
        errors: what it wrote to standard error.
        moment: of its end, by `time.monotonic()`.
    """

    status: int | None
    output: str
    errors: str
    moment: float


def on_cuda() -> bool:
    """Tell whether MLX runs on CUDA here, in a process of its own: this one must hold no GPU."""
    code = "import mlx.core as mx; print(mx.cuda.is_available())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return found.stdout.strip() == "True"


def run_group(
    module: str, task: dict[str, Any], count: int, *, cuda: bool, seconds: float, patience: float = 0.0
) -> list[Ended]:
    """Run `python -m module '{task}'` in `count` processes, one for each GPU or connected by a ring.

    Args:
        module: the program.
        task: its argument, as JSON.
        count: the number of processes.
        cuda: whether each one has a GPU, and NCCL connects them.
        seconds: all that are left are killed after this time.
        patience: seconds that the others have after this time, if one process has been stopped.
    """
    ended: list[Ended | None] = [None] * count
    with tempfile.TemporaryDirectory() as room:
        begin = time.monotonic()
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", module, json.dumps(task)],
                env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for own in _environments(count, Path(room), cuda=cuda)
        ]  # fmt: skip

        def follow(rank: int) -> None:
            output, errors = processes[rank].communicate()
            ended[rank] = Ended(processes[rank].returncode, output, errors, time.monotonic())

        threads = [threading.Thread(target=follow, args=(rank,)) for rank in range(count)]
        try:
            for thread in threads:
                thread.start()
            _wait(threads, begin + seconds, patience)
        finally:
            left = [rank for rank, process in enumerate(processes) if process.poll() is None]
            for rank in left:
                processes[rank].kill()
            for thread in threads:
                thread.join()
    found = [each for each in ended if each is not None]
    return [each._replace(status=None) if rank in left else each for rank, each in enumerate(found)]


def _wait(threads: list[threading.Thread], end: float, patience: float) -> None:
    """Wait until all have ended, or all but one and `patience` more seconds have passed, or until `end`."""
    alone: float | None = None
    while time.monotonic() < end and any(thread.is_alive() for thread in threads):
        if patience and sum(thread.is_alive() for thread in threads) == 1:
            alone = alone or time.monotonic()
            if time.monotonic() - alone > patience:
                return
        time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _environments(count: int, room: Path, *, cuda: bool) -> list[dict[str, str]]:
    """Return the variables of each process: what `mlx.launch` and `torchrun` set."""
    shared = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(_free_port())}
    if cuda:
        shared |= {"NCCL_HOST_IP": "127.0.0.1", "NCCL_PORT": str(_free_port()), "MLX_WORLD_SIZE": str(count)}
    elif count > 1:
        hosts = room / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{_free_port()}"] for _ in range(count)]))
        shared |= {"MLX_HOSTFILE": str(hosts)}
    if count == 1:
        for name in ("NCCL_HOST_IP", "NCCL_PORT", "MLX_WORLD_SIZE", "MLX_HOSTFILE", "MLX_RANK"):
            shared.pop(name, None)
    found = []
    for rank in range(count):
        own = shared | {"RANK": str(rank), "LOCAL_RANK": "0"}
        own |= {"MLX_RANK": str(rank)} if count > 1 else {}
        found.append(own | ({"CUDA_VISIBLE_DEVICES": str(rank)} if cuda else {}))
    return found
