"""One training step: purestep against the same mathematics by hand, compiled and not.

Each contestant is a process of its own; they take turns of --steps steps in an order shuffled each
round, so ratios are of neighbours in time. purestep runs in a second process too: how far that ratio is
from 1 is how far to trust the others. Every step ends with mx.eval(state, metrics), inside the timing.
The first call is timed with an empty kernel cache: it traces, builds kernels (g++ on a CPU, NVRTC on
CUDA, a minute for a transformer there) and runs, one contestant at a time for every two cores; --warm
keeps the cache instead. Before a time is reported, 20 steps of every contestant are compared, with
dropout switched off there: what a model draws follows from how its key is handled, which is each
contestant's own.
"""

import argparse
import gc
import io
import re
import statistics
import time
from functools import partial
from typing import Any

import mlx.core as mx

from benchmarks import harness
from benchmarks.harness import ContestantError, Limit, Panel, Record, Worker
from benchmarks.workloads.models import STEP
from benchmarks.workloads.steps import CONTESTANTS, Contestant, disagreement, named
from purestep._core.types import Metrics

AGREEMENT_STEPS = 20
TOLERANCE = 1e-4  # of each metric, relative; of the parameters, as a share of the way they have come
PURESTEP, UNCOMPILED, AGAIN = "purestep", "purestep, uncompiled", "purestep, again"
BASELINES = ("by hand, pure", "by hand, mutable", AGAIN)


class Session:
    """One contestant on one workload, in the worker's process."""

    def __init__(self, workload: str, contestant: str):
        self._workload, self._contestant = STEP[workload], CONTESTANTS[contestant]
        self._batches = [self._workload.batch(mx.random.key(i)) for i in range(8)]
        self._made = 0
        mx.eval(self._batches)
        self._current = self._start(dropout=0.1)

    def _start(self, dropout: float) -> Contestant:
        mx.random.seed(0)
        contestant = self._contestant(self._workload.model(dropout))
        mx.eval(contestant.state)
        return contestant

    def _step(self) -> Metrics:
        contestant = self._current
        state, metrics = contestant.step(contestant.state, self._batches[self._made % len(self._batches)])
        self._current = contestant = contestant._replace(state=state)
        self._made += 1
        mx.eval(state, metrics)
        return metrics

    def first(self) -> float:
        """Return the seconds of the first step."""
        begin = time.perf_counter()
        self._step()
        return time.perf_counter() - begin

    def seconds(self, steps: int) -> float:
        """Return the seconds of this many steps, after one that brings the caches back."""
        self._step()
        begin = time.perf_counter()
        for _ in range(steps):
            self._step()
        return time.perf_counter() - begin

    def memory(self, steps: int) -> dict[str, int]:
        """Return medians over warm steps: the peak of active memory, and what is active after, in bytes.

        On a CPU peaks vary from step to step, with how far the calling thread runs ahead of the stream.
        """
        self.seconds(2)
        gc.collect()
        peaks, baselines = [], []
        for _ in range(steps):
            mx.reset_peak_memory()
            self._step()
            peaks.append(mx.get_peak_memory())
            baselines.append(mx.get_active_memory())
        return {"baseline": int(statistics.median(baselines)), "peak": int(statistics.median(peaks))}

    def nodes(self) -> int:
        """Return the size of one step's graph: operations, a fused kernel counted as one."""
        contestant = self._current
        outputs = contestant.step(contestant.state, self._batches[0])
        arrays = [leaf for _, leaf in named(outputs) if isinstance(leaf, mx.array)]
        dot = io.StringIO()
        mx.export_to_dot(dot, *arrays)
        mx.eval(arrays)  # the mutable contestant has advanced
        return len(re.findall(r'\[label ="', dot.getvalue()))

    def trajectory(self, steps: int) -> dict[str, Any]:
        """Train anew from the start, without dropout; return every metric, and the parameters by name."""
        kept, self._current, self._made = self._current, self._start(dropout=0.0), 0

        def params() -> dict[str, list[float]]:
            leaves = named(self._current.params(self._current.state))
            return {name: leaf.flatten().tolist() for name, leaf in leaves}

        before = params()
        metrics = [{name: value.item() for name, value in self._step().items()} for _ in range(steps)]
        after, self._current = params(), kept
        return {"metrics": metrics, "before": before, "after": after}


def compete(name: str, steps: int, options: argparse.Namespace, record: Record, limit: Limit) -> None:
    """Run one workload.

    Raises:
        ContestantError: if two contestants do not compute the same.
    """
    harness.note(f"{name}: first calls, memory and agreement")
    contestants = {AGAIN: (name, PURESTEP)} | {contestant: (name, contestant) for contestant in CONTESTANTS}
    results: dict[str, dict[str, Any]] = {}
    with harness.workers(Session, contestants, cold=not options.warm) as workers:

        def stop() -> None:
            for worker in workers:
                worker.kill()

        firsts = [partial(worker.call, "first") for worker in workers]
        at_a_time = harness.cores() // 2  # a first call builds kernels on one core
        made = harness.at_once(firsts, at_a_time, stop)
        for worker, first in zip(workers, made, strict=True):
            harness.note(f"{name}: {worker.name}", passing=True)
            results[worker.name] = {
                "first": first,
                "memory": worker.call("memory", 20),
                "nodes": worker.call("nodes"),
            }
        agree(workers, results)
        record.found["workloads"][name] = {
            "about": STEP[name].about,
            "steps": steps,
            "contestants": results,
        }

        def after(seconds: dict[str, list[float]]) -> None:
            for contestant, values in seconds.items():
                results[contestant]["seconds"] = values
            record.keep()

        harness.note(f"{name}: {options.rounds} rounds of {steps} steps")
        for worker in workers:
            worker.call("seconds", steps)
        harness.race(workers, steps=steps, rounds=options.rounds, limit=limit, after=after)


def agree(workers: list[Worker], results: dict[str, dict[str, Any]]) -> None:
    """Compare all contestants with the plainest one, the last; note by how much they differ."""
    *others, plainest = workers
    want = plainest.call("trajectory", AGREEMENT_STEPS)
    for worker in others:
        apart = disagreement(worker.call("trajectory", AGREEMENT_STEPS), want)
        results[worker.name]["disagreement"] = apart
        if not all(value <= TOLERANCE for value in apart.values()):
            raise ContestantError(
                f"{worker.name} and {plainest.name} disagree after {AGREEMENT_STEPS} steps: metrics by "
                f"{apart['metrics']:.2g}, parameters by {apart['params']:.2g}, tolerance {TOLERANCE}"
            )


def show(found: dict[str, Any]) -> str:
    """Write the results of all workloads."""
    parts = [show_workload(name, measured) for name, measured in found["workloads"].items()]
    return "\n\n".join([harness.facts_lines(found["facts"]), *parts])


def show_workload(name: str, measured: dict[str, Any]) -> str:
    """Write one workload's results."""
    all_, rows = measured["contestants"], []
    for contestant, result in all_.items():
        memory = result["memory"]
        rows.append(
            [
                contestant,
                harness.milliseconds(result.get("seconds", [])),
                f"{result['first']:.2f}",
                *(f"{memory[kind] / 1e6:.2f}" for kind in ("peak", "baseline")),
                str(result["nodes"]),
            ]
        )
    head = ["contestant", "ms/step (quartiles)", "first call s", "peak MB", "base MB", "nodes"]
    seconds = {contestant: result.get("seconds", []) for contestant, result in all_.items()}
    lines = [
        f"{name}: {measured['about']}; {len(seconds[PURESTEP])} rounds of {measured['steps']} steps",
        harness.table(head, rows),
    ]
    ours, memory = seconds[PURESTEP], {other: all_[other]["memory"]["peak"] for other in all_}
    for other in BASELINES if ours else ():
        fastest = harness.fastest(ours) / harness.fastest(seconds[other])
        lines.append(
            f"purestep / {other}: time {harness.ratio(ours, seconds[other])}, of the fastest turns "
            f"{fastest:.2f}, peak memory {memory[PURESTEP] / memory[other]:.2f}"
        )
    apart = [r["disagreement"] for r in all_.values() if "disagreement" in r]
    worst = [max(a[kind] for a in apart) for kind in ("metrics", "params")]
    lines += [
        f"purestep compiled is {harness.ratio(seconds[UNCOMPILED], ours)} times as fast as uncompiled",
        f"after {AGREEMENT_STEPS} steps metrics agree to {worst[0]:.1g}, parameters to {worst[1]:.1g} of "
        f"their way (tolerance {TOLERANCE:g})",
    ]
    return "\n".join(lines)


def panels(found: dict[str, Any]) -> list[Panel]:
    """Return a diagram for each workload."""
    return [
        Panel(
            f"{name}: {measured['about']}",
            "ms a step, less is better",
            harness.bars(harness.timed(measured["contestants"]), PURESTEP),
        )
        for name, measured in found["workloads"].items()
    ]


def missed(found: dict[str, Any]) -> list[str]:
    """Return an empty list: the step has no target here."""
    return []


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--workload", nargs="+", choices=STEP, default=list(STEP), metavar="NAME")
    parser.add_argument("--steps", type=harness.positive, help="steps a turn (some 50 ms of them)")
    parser.add_argument(
        "--rounds", type=harness.positive, default=60, help="turns each contestant takes (60)"
    )
    parser.add_argument("--warm", action="store_true", help="keep MLX's kernel cache: no fair first calls")


def measure(options: argparse.Namespace, record: Record, limit: Limit) -> None:
    """Measure the workloads asked for."""
    record.keep(facts=harness.facts(), workloads={}, tolerance=TOLERANCE)
    for index, name in enumerate(options.workload):
        part = limit.share(1 / (len(options.workload) - index))
        compete(name, options.steps or STEP[name].steps, options, record, part)
