"""What must hold in several processes: checkpoints, the watchdog, and a model too large for one device.

- A checkpoint that all processes write is restored in half as many, and so on down to one, and in all of them
  again: with the same bits.
- A process that is stopped (SIGSTOP) within a step ends the others, with its name, within the timeout of the
  watchdog and 5 seconds.
- A model trains whose AdamW state is as large as the memory of a device (--share). On a CPU it is small.

The processes have a GPU each, connected by NCCL, or are connected by a ring.
"""

import argparse
import json
import tempfile
from typing import Any

from benchmarks import harness
from benchmarks.harness import Bar, ContestantError, Ended, Limit, Machine, Panel, Record, Spread, Worker

MODULE = "benchmarks.peers.in_group"
TIMEOUT, SLACK = 4.0, 5.0  # seconds
SMALL = 4e6  # bytes of the state of the large model on a CPU


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--gpus", "--processes", type=harness.positive, default=2, help="processes (2)")
    parser.add_argument("--stops", type=harness.positive, default=10, help="times that one is stopped (10)")
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="of a device's memory, for the state of the large model (1.0)",
    )


def measure(options: argparse.Namespace, record: Record, limit: Limit) -> None:
    """Do all three."""
    with Worker("machine", Machine) as machine:
        record.keep(facts=machine.call("facts"))
    cuda, count = harness.on_cuda(), options.gpus
    record.found |= {"label": f"ranks-{count}", "count": count, "cuda": cuda, "failures": {}}
    record.found |= {"checkpoints": [], "stops": [], "large": None}

    def run(task: dict[str, Any], size: int, **waits: float) -> list[Ended]:
        return harness.run_group(MODULE, task, size, cuda=cuda, seconds=limit.left(), **waits)

    with tempfile.TemporaryDirectory() as room:
        digest = None
        for size in (count, *_halves(count), count):
            task = {"what": "restore" if digest else "save", "directory": f"{room}/run"}
            harness.note(f"{task['what']} in {size} processes")
            try:
                found = printed(run(task, size))
            except ContestantError as error:
                record.found["failures"][f"{task['what']}, {size}"] = str(error)
                break
            digest = digest or found["digest"]
            record.found["checkpoints"].append([task["what"], size, found["own"], found["digest"] == digest])
            record.keep()
    for number in range(options.stops):
        ill = number % count
        harness.note(f"stop {number + 1} of {options.stops}")
        task = {"what": "stop", "ill": ill, "timeout": TIMEOUT}
        record.found["stops"].append(stopped(run(task, count, patience=SLACK), ill))
        record.keep()
    harness.note("a large model")
    task = {"what": "large", "width": 4096 if cuda else 64}
    task["bytes"] = options.share * memory() if cuda else SMALL
    try:
        record.keep(large=printed(run(task, count)) | {"bytes": task["bytes"]})
    except ContestantError as error:
        record.found["failures"]["large"] = str(error)
        record.keep()


def memory() -> float:
    """Return the bytes of a GPU, read in a process of its own."""
    with Worker("memory", Machine) as machine:
        return float(machine.call("memory"))


def _halves(count: int) -> list[int]:
    return [count // 2**n for n in range(1, count.bit_length())]


def printed(ended: list[Ended]) -> dict[str, Any]:
    """Return what rank 0 printed.

    Raises:
        ContestantError: if a process failed or had no more time.
    """
    for rank, each in enumerate(ended):
        if each.status != 0:
            how = "had no more time" if each.status is None else f"ended with {each.status}"
            raise ContestantError(f"rank {rank} {how}: {each.errors[-1000:]}")
    return json.loads(ended[0].output.strip().splitlines()[-1])


def stopped(ended: list[Ended], ill: int) -> dict[str, Any]:
    """Return which rank was stopped, the seconds until the last other one ended, and whether all named it."""
    others = [each for rank, each in enumerate(ended) if rank != ill]
    lines = [line for line in ended[ill].output.splitlines() if line.startswith("{")]
    begun = json.loads(lines[0])["moment"] if lines else float("nan")
    seconds = max((each.moment for each in others), default=float("nan")) - begun
    named = all(each.status not in (0, None) and f"rank {ill}" in each.errors for each in others)
    return {"rank": ill, "seconds": seconds, "named": named}


def show(found: dict[str, Any]) -> str:
    """Write the tables."""
    saved = [
        [what, str(size), f"{own / 1e6:.2f}", "yes" if same else "no"]
        for what, size, own, same in found["checkpoints"]
    ]
    lines = [
        harness.facts_lines(found["facts"]),
        f"{found['count']} processes, {'NCCL' if found['cuda'] else 'ring'}",
        "",
        harness.table(["checkpoint", "processes", "state MB a rank", "same bits"], saved),
        "",
        _stops(found["stops"]),
    ]
    if found["large"]:
        made = found["large"]
        seconds = Spread.of(made["times"][1:])
        lines += [
            "",
            f"{made['parameters'] / 1e9:.3g}B parameters in bfloat16, {made['layers']} layers: AdamW's state "
            f"has {8 * made['parameters'] / 1e9:.3g} GB, {made['own'] / 1e9:.3g} GB a rank",
            f"256 tokens a rank: {seconds.show(3)} s a step, peak {made['peak'] / 1e9:.3g} GB; losses "
            + " ".join(f"{loss:.2f}" for loss in made["losses"]),
        ]
    return "\n".join([*lines, *(f"{name}: {why}" for name, why in found["failures"].items())])


def _stops(stops: list[dict[str, Any]]) -> str:
    if not stops:
        return "no process was stopped"
    good = sum(map(_is_good, stops))
    seconds = [each["seconds"] for each in stops]
    return (
        f"a stopped process: the others ended with its name within {TIMEOUT:g} + {SLACK:g} s in {good} of "
        f"{len(stops)}, after {min(seconds):.1f} to {max(seconds):.1f} s"
    )


def _is_good(each: dict[str, Any]) -> bool:
    return each["named"] and each["seconds"] <= TIMEOUT + SLACK


def panels(found: dict[str, Any]) -> list[Panel]:
    """Return the picture: how long the others lived."""
    seconds = [each["seconds"] for each in found["stops"]]
    bars = [Bar("others end", Spread.of(seconds))] if seconds else []
    return [Panel("A stopped process", "s, less is better", bars, TIMEOUT + SLACK, "allowed")]


def missed(found: dict[str, Any]) -> list[str]:
    """Return what failed."""
    return [
        *found["failures"],
        *(f"{what}, {size}: other bits" for what, size, _, same in found["checkpoints"] if not same),
        *(f"stop of rank {each['rank']}" for each in found["stops"] if not _is_good(each)),
    ]
