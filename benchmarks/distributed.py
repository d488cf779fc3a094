"""One training step of GPT-2 in several processes: purestep, the all-reduce alone, torch's DDP.

Every contestant is a group of processes on this machine, one for each GPU (NCCL), or over the ring on CPU
cores. The same step in one process comes first: the efficiency is its time as a part of that of the group,
which makes as many times the rows. The first losses and norms of the groups are compared.
"""

import argparse
import json
from typing import Any

from benchmarks import harness, transformer
from benchmarks.harness import ContestantError, Limit, Machine, Panel, Record, Worker
from benchmarks.workloads import gpt

ONE = "purestep packed"
GROUPS = (ONE, "purestep leaves", "purestep packed bfloat16", "purestep sharded", "all-reduce")
TOLERANCE = 2e-3  # of the losses and norms of the groups, relative; bfloat16 gradients are rounded
MODULE = "benchmarks.peers.in_ranks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--gpus", "--processes", type=harness.positive, default=2, help="processes (2)")
    parser.add_argument("--size", choices=gpt.SIZES, default="gpt2")
    parser.add_argument("--no-torch", action="store_true", help="without torch")
    transformer.add_common(parser, steps=20, rounds=5)


def measured(
    name: str, count: int, options: argparse.Namespace, *, cuda: bool, seconds: float
) -> dict[str, Any]:
    """Run a contestant in `count` processes and return what its rank 0 printed."""
    task = {"name": name, "shape": gpt.SIZES[options.size], "steps": options.steps, "rounds": options.rounds}
    harness.note(f"{name}, {count} processes")
    ended = harness.run_group(MODULE, task, count, cuda=cuda, seconds=seconds)
    for each in ended:
        if each.status is None:
            raise ContestantError(f"{name} had no more time")
        if each.status:
            raise ContestantError(f"{name} ended with {each.status}: {each.errors[-2000:]}")
    return json.loads(ended[0].output.strip().splitlines()[-1])


def measure(options: argparse.Namespace, record: Record, limit: Limit) -> None:
    """Measure the step in one process, then in groups."""
    with Worker("machine", Machine) as machine:  # this process must hold no GPU
        record.keep(facts=machine.call("facts"), contestants={})
    cuda, count = harness.on_cuda(), options.gpus
    record.found |= {"label": f"distributed-{options.size}-{count}", "count": count, "cuda": cuda}
    record.found |= {"shape": gpt.SIZES[options.size]._asdict(), "failures": {}}
    torch = [] if options.no_torch else ["torch"]
    for size, names in ((1, [ONE, *torch]), (count, [*GROUPS, *torch])):
        for name in names:
            if options.only and name not in options.only:
                continue
            shown = f"{name}, {size}"
            try:
                made = measured(name, size, options, cuda=cuda, seconds=limit.left())
                record.found["contestants"][shown] = made
            except ContestantError as error:
                record.found["failures"][shown] = str(error)
            record.keep()


def show(found: dict[str, Any]) -> str:
    """Write the table."""
    shape, count, all_ = gpt.Shape(**found["shape"]), found["count"], found["contestants"]
    tokens, rows = shape.rows * shape.context, []
    ddp = all_.get(f"torch, {count}", {}).get("seconds")
    for name, each in all_.items():
        kind, _, size = name.rpartition(", ")
        seconds, in_group = each["seconds"], int(size) > 1 and not kind.startswith("all-reduce")
        alone = all_.get("torch, 1" if kind == "torch" else f"{ONE}, 1", {}).get("seconds")
        rows.append(
            [
                name,
                harness.milliseconds(each["times"]),
                "-" if kind.startswith("all-reduce") else f"{int(size) * tokens / seconds / 1e3:.0f}",
                f"{100 * alone / seconds:.0f} %" if alone and in_group else "-",
                f"{seconds / ddp:.2f}" if ddp and in_group else "-",
                "-" if each["peak"] is None else f"{each['peak'] / 1e9:.2f}",
                "-" if each["state"] is None else f"{each['state'] / 1e6:.1f}",
            ]
        )
    head = ["contestant, processes", "ms/step", "ktok/s", "efficiency", "of DDP", "peak GB", "state MB"]
    lines = [
        harness.facts_lines(found["facts"]),
        f"{shape.about()} a process, {count} processes, {'NCCL' if found['cuda'] else 'ring'}",
        "",
        harness.table(head, rows),
        *(f"{name}: {reason}" for name, reason in found["failures"].items()),
        *missed(found),
    ]
    return "\n".join(lines)


def panels(found: dict[str, Any]) -> list[Panel]:
    """Return the picture: the time of a step."""
    times = {name: each["times"] for name, each in found["contestants"].items()}
    title = f"A step in {found['count']} processes: {gpt.Shape(**found['shape']).about()}"
    return [Panel(title, "ms, less is better", harness.bars(times, f"{ONE}, 1"))]


def missed(found: dict[str, Any]) -> list[str]:
    """Return the groups of purestep whose first losses and norms differ from those of the first group."""
    count, lines = found["count"], []
    want = found["contestants"].get(f"{ONE}, {count}", {}).get("metrics")
    for name, each in found["contestants"].items() if want else []:
        if name.endswith(f", {count}") and name.startswith("purestep"):
            flat = [[value for row in metrics for value in row] for metrics in (each["metrics"], want)]
            pairs = zip(*flat, strict=True)
            worst = max(abs(a - b) / abs(b) for a, b in pairs)
            if worst > TOLERANCE:
                lines.append(f"{name}: losses or norms differ by {worst:.1e}")
    return lines
