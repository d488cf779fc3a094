"""Programs that run in several processes over MLX's ring on this machine."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

SOURCES = Path(__file__).parents[2] / "src"


def free_ports(count):
    """Return ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Launched:
    """Processes that run one program, or one each, with a rank of their own."""

    def __init__(self, program, count, arguments=(), environment=None):
        self.room = TemporaryDirectory()
        hosts = Path(self.room.name) / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(count)]))
        path = os.pathsep.join(map(str, (SOURCES, SOURCES.parent, Path(__file__).parent)))
        shared = os.environ | {"PYTHONPATH": path, **(environment or {})}
        if count > 1:  # the ring does not connect a process with itself
            shared |= {"MLX_HOSTFILE": str(hosts)}
        programs = program if isinstance(program, list) else [program] * count
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(programs[rank]), *map(str, arguments)],
                env=shared | {"MLX_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]

    def wait(self, timeout=120):
        """Return the status, output and errors of each process; end those that are left after the timeout."""
        deadline = time.monotonic() + timeout
        try:
            found = []
            for process in self.processes:
                left = max(deadline - time.monotonic(), 0.1)
                out, err = process.communicate(timeout=left)
                found.append((process.returncode, out, err))
            return found
        finally:
            self.close()

    def close(self):
        """End all processes."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            for stream in (process.stdout, process.stderr):
                stream.close()
        self.room.cleanup()


def launched(program, count, arguments=(), **options):
    """Run a program in several processes and return their outputs; fail with their errors."""
    found = Launched(program, count, arguments, **options).wait()
    for rank, (status, out, err) in enumerate(found):
        assert status == 0, f"rank {rank} ended with {status}:\n{out}\n{err}"
    return [out for _, out, _ in found]
