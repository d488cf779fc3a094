"""One training step of GPT-2 in several processes: purestep, the all-reduce alone, torch's DDP.

Every contestant is a group of processes on this machine, one for each GPU (NCCL), or over the ring on CPU
cores. The same step in one process comes first: the efficiency is its time as a part of that of the group,
which makes as many times the rows. The first losses and norms of the groups are compared.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import gpt, harness
from benchmarks.harness import ContestantError

ONE = "purestep packed"
GROUPS = (ONE, "purestep leaves", "purestep packed bfloat16", "purestep sharded", "all-reduce")
TOLERANCE = 2e-3  # of the losses and norms of the groups, relative; bfloat16 gradients are rounded
MODULE = "benchmarks.peers.in_ranks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--gpus", "--processes", type=harness.positive, default=2, help="processes")
    parser.add_argument("--size", choices=gpt.SIZES, default="gpt2")
    parser.add_argument("--steps", type=harness.positive, default=20, help="steps of a round")
    parser.add_argument("--rounds", type=harness.positive, default=5)
    parser.add_argument("--no-torch", action="store_true", help="without torch")
    parser.add_argument("--timeout", type=harness.positive, default=240, help="seconds for a contestant")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environments(count: int, room: Path, *, cuda: bool) -> list[dict[str, str]]:
    """Return the variables of each process: what `mlx.launch` and `torchrun` set."""
    shared = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port())}
    if cuda:
        shared |= {"NCCL_HOST_IP": "127.0.0.1", "NCCL_PORT": str(free_port()), "MLX_WORLD_SIZE": str(count)}
    elif count > 1:
        hosts = room / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{free_port()}"] for _ in range(count)]))
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


def measured(name: str, count: int, options: argparse.Namespace, *, cuda: bool) -> dict[str, Any]:
    """Run a contestant in `count` processes and return what its rank 0 printed."""
    task = {"name": name, "shape": gpt.SIZES[options.size], "steps": options.steps, "rounds": options.rounds}
    harness.note(f"{name}, {count} processes")
    with tempfile.TemporaryDirectory() as room:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", MODULE, json.dumps(task)],
                env=own,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for own in environments(count, Path(room), cuda=cuda)
        ]
        try:
            outputs = [process.communicate(timeout=options.timeout) for process in processes]
        except subprocess.TimeoutExpired:
            raise ContestantError(f"{name} took more than {options.timeout} s") from None
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode:
            raise ContestantError(f"{name} ended with {process.returncode}: {errors[-2000:]}")
    return json.loads(outputs[0][0].strip().splitlines()[-1])


def on_cuda() -> bool:
    """Tell whether MLX runs on CUDA here, in a process of its own: this one must hold no GPU."""
    code = "import mlx.core as mx; print(mx.cuda.is_available())"
    return (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "True"
    )


def run(options: argparse.Namespace) -> int:
    """Measure, print a table and return the exit code: 1 if the groups disagree."""
    cuda, count, shape = on_cuda(), options.gpus, gpt.SIZES[options.size]
    tokens = shape.rows * shape.context
    singles = [ONE, *(["torch"] if not options.no_torch else [])]
    groups = [*GROUPS, *(["torch"] if not options.no_torch else [])]
    found = {f"{name}, 1": measured(name, 1, options, cuda=cuda) for name in singles}
    found |= {f"{name}, {count}": measured(name, count, options, cuda=cuda) for name in groups}
    alone, ddp = found[f"{ONE}, 1"]["seconds"], found.get(f"torch, {count}", {}).get("seconds")
    rows = []
    for name, each in found.items():
        kind, _, size = name.rpartition(", ")
        seconds, compares = each["seconds"], not kind.startswith("all-reduce")
        base = found.get("torch, 1", each)["seconds"] if kind == "torch" else alone
        rows.append(
            [
                name,
                f"{1e3 * seconds:.2f}",
                f"{int(size) * tokens / seconds / 1e3:.0f}" if compares else "",
                f"{100 * base / seconds:.0f} %" if compares and int(size) > 1 else "",
                f"{seconds / ddp:.2f}" if ddp and compares and int(size) > 1 else "",
                "" if each["peak"] is None else f"{each['peak'] / 1e9:.2f}",
                "" if each["state"] is None else f"{each['state'] / 1e6:.1f}",
            ]
        )
    head = ["contestant, processes", "ms", "ktok/s", "efficiency", "of DDP", "peak GB", "state MB"]
    text = f"{shape.about()} a process, {count} processes, {'NCCL' if cuda else 'ring'}\n"
    text += harness.table(head, rows)
    wrong = disagreements(found, count)
    print("\n".join([text, *wrong]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return bool(wrong)


def disagreements(found: dict[str, Any], count: int) -> list[str]:
    """Return the groups of purestep whose first losses and norms differ from those of the first group."""
    want = found[f"{ONE}, {count}"]["metrics"]
    lines = []
    for name, each in found.items():
        if name.endswith(f", {count}") and name.startswith("purestep"):
            flat = [[value for row in metrics for value in row] for metrics in (each["metrics"], want)]
            pairs = zip(*flat, strict=True)
            worst = max(abs(a - b) / abs(b) for a, b in pairs)
            if worst > TOLERANCE:
                lines.append(f"{name}: losses or norms differ by {worst:.1e}")
    return lines
