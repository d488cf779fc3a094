"""`train_step(measure=...)` against the same compiled step without measurements: time and peak memory.

All contestants share one model, one start and one source. They take turns of --steps steps in an order that
is shuffled each round, with `mx.async_eval` after each step. First come the sets with a target, then each
measurement in every step: divided by n, its cost is that of `every=n`. The parameters after a short turn are
compared first: a measurement must not change them. On CUDA two equal loops differ, since gradients of lookups
are summed in any order; there the others may differ by twice as much. A contestant that is not ready after
two thirds of the time limit is left out. On a CPU, MLX multiplies with OpenBLAS where that is installed.

Targets over no measurement: all measurements every 10 steps (curvature: every 100 steps, on a part of the
batch) at most 1.02 of the time, norms in every step at most 1.01, and peak memory at most 1.02.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import mlx.core as mx

import purestep as ps
from benchmarks import harness
from benchmarks.harness import ContestantError, Limit, Panel, Record, Worker
from benchmarks.workloads.models import GPT2, Size, tokens
from purestep._core import hardware

NONE, AGAIN = "none", "none, again"
TARGETS = {"all, every 10": 1.02, "norms, every step": 1.01}
PEAK_TARGET = 1.02
MICROBATCHES = 2
AGREEMENT_STEPS = 11  # step 10 measures again what is measured every 10 steps: each trace is there
PREPARING = 0.65  # share of the time limit


SIZES = {
    "tiny": Size("width 64, 2 layers, 4 x 32 tokens", 100, (256, 32, 64, 2, 4), 4, mx.float32),
    "small": Size("width 256, 4 layers, 8 x 128 tokens", 10, (512, 128, 256, 4, 8), 8, mx.float32),
    "gpt2": GPT2._replace(steps=100),
}


def measurements(
    params: Any, rows: int, every: int, curvature_every: int
) -> dict[str, ps.metrics.Measurement]:
    """Return one of each measurement."""
    m = ps.metrics
    return {
        "grad_norms": m.grad_norms(every=every),
        "weight_norms": m.weight_norms(every=every),
        "drift": m.drift(params, every=every),
        "update_ratios": m.update_ratios(every=every),
        "nonfinite_share": m.nonfinite_share(every=every),
        "zero_share": m.zero_share(every=every),
        "noise_scale": m.noise_scale(every=every),
        "activations of blocks": m.activations(["encoder.layers.?", "encoder.layers.*.linear1"], every=every),
        "attention_entropy": m.attention_entropy("*.attention", every=every),
        "curvature": m.curvature(rows=max(1, rows // 8), every=curvature_every),
    }


class Session:
    """The contestants, in the worker's process: a compiled step for each set of measurements."""

    def __init__(self, name: str, steps: int, clock: str):
        self.clock = time.process_time if clock == "cpu" else time.perf_counter
        size = SIZES[name]
        vocabulary, context = size.shape[:2]
        loss_fn, params, transform = size.problem()
        self.steps = steps
        self.batches = [tokens(mx.random.key(i), size.rows, context, vocabulary) for i in range(8)]
        self.start = ps.TrainState.create(params, transform)
        mx.eval(self.start, self.batches)

        def step(*measure: ps.metrics.Measurement) -> Any:
            return ps.compiled(ps.train_step(loss_fn, transform, microbatches=MICROBATCHES, measure=measure))

        def every(*names: str) -> Any:
            return step(*(single[name] for name in names))

        single = measurements(params, size.rows, 1, 1)
        tenth = measurements(params, size.rows, 10, 100)
        self.makers: dict[str, Callable[[], Any]] = {
            NONE: step,
            AGAIN: step,
            "norms, every step": partial(every, "grad_norms", "weight_norms"),
            "all, every 10": lambda: step(*tenth.values()),
            **{f"{each}, every step": partial(every, each) for each in single},
        }
        self.contestants: dict[str, Any] = {}
        self.wanted: Any = None
        self.equal = 0.0

    def names(self) -> list[str]:
        """Return the names of all contestants."""
        return list(self.makers)

    def facts(self) -> dict[str, Any]:
        """Return what the numbers depend on beside the code."""
        return harness.facts()

    def turn(self, contestant: str) -> float:
        """Return the seconds a step of one turn."""
        return self._run(contestant, self.steps)[0]

    def _run(self, contestant: str, steps: int) -> tuple[float, ps.TrainState]:
        state, step, begun = self.start, self.contestants[contestant], self.clock()
        before: Any = []
        for number in range(steps):
            state, metrics = step.at(number)(state, self.batches[number % len(self.batches)])
            mx.async_eval(state, metrics)
            mx.eval(before)  # at most one step ahead, as in `run`
            before = metrics
        mx.eval(state)
        return (self.clock() - begun) / steps, state

    def peak(self, contestant: str) -> int:
        """Return the peak of memory over a short turn, in bytes."""
        mx.clear_cache()
        mx.reset_peak_memory()
        self._run(contestant, AGREEMENT_STEPS)
        return mx.get_peak_memory()

    def prepare(self, contestant: str) -> dict[str, float]:
        """Make a contestant and compare the end of a short turn with that of no measurement, the first.

        Returns:
            `apart`, the distance as a share of the way from the start, and the number of `traces`.

        Raises:
            ValueError: if measurements change the parameters.
        """
        step = self.contestants[contestant] = self.makers[contestant]()
        params = self._run(contestant, AGREEMENT_STEPS)[1].params
        if self.wanted is None:
            self.wanted = params
        way = ps.tree.norm(ps.tree.map(mx.subtract, self.wanted, self.start.params))
        distance = ps.tree.norm(ps.tree.map(mx.subtract, params, self.wanted))
        apart = cast(float, (distance / way).item())
        if contestant == AGAIN:
            self.equal = apart
        elif not apart <= 2 * self.equal:
            raise ValueError(f"{contestant} ends {apart:.2g} of its way from {NONE}")
        return {"apart": apart, "traces": step.traces}


def prepare(worker: Worker, names: list[str], record: Record, limit: Limit) -> list[str]:
    """Prepare contestants until the limit, the two without a measurement always; return who is ready.

    Raises:
        ContestantError: if a name is not known, or measurements change the parameters.
    """
    known = worker.call("names")
    if unknown := sorted(set(names) - set(known)):
        raise ContestantError(f"unknown: {'; '.join(unknown)}. Known: {'; '.join(known)}")
    wanted = [name for name in known if not names or name in {NONE, AGAIN, *names}]
    all_, longest = record.found["contestants"], 0.0
    for index, name in enumerate(wanted):
        if index >= 2 and limit.left() < longest:
            record.found["left_out"] = wanted[index:]
            harness.note(f"the time limit leaves out: {'; '.join(wanted[index:])}")
            break
        harness.note(f"first steps of {name}")
        begun = time.monotonic()
        all_[name] = worker.call("prepare", name) | {"peak": worker.call("peak", name)}
        longest = max(longest, time.monotonic() - begun)
        record.keep()
    return list(all_)


def show(found: dict[str, Any]) -> str:
    """Write the results."""
    all_ = found["contestants"]
    base = all_.get(NONE, {"peak": 1}).get("seconds", [])
    rows = []
    for contestant, each in all_.items():
        seconds = each.get("seconds", [])
        rows.append(
            [
                contestant,
                harness.milliseconds(seconds),
                harness.ratio(seconds, base, 3),
                f"{harness.fastest(seconds) / harness.fastest(base):.3f}" if seconds else "-",
                f"{each['peak'] / 1e6:.1f}",
                f"{each['peak'] / all_[NONE]['peak']:.3f}",
                str(each["traces"]),
            ]
        )
    head = ["measurements", "ms/step (quartiles)", "over none", "fastest", "peak MB", "over none", "traces"]
    about = (
        f"{found['options']['size']}: {found['about']}, {MICROBATCHES} microbatches; {len(base)} turns of "
    )
    lines = [harness.facts_lines(found["facts"]), "", about + f"{found['steps']} steps"]
    lines.append(harness.table(head, rows))
    if found["left_out"]:
        lines.append(f"left out by the time limit: {'; '.join(found['left_out'])}")
    lines += [f"missed: {target}" for target in missed(found)]
    return "\n".join(lines)


def panels(found: dict[str, Any]) -> list[Panel]:
    """Return the picture."""
    all_ = found["contestants"]
    seconds = harness.timed(all_)
    return [
        Panel(found["about"], "ms a step, less is better", harness.bars(seconds, NONE)),
        harness.sizes("Peak memory", {name: each["peak"] for name, each in all_.items()}, NONE),
    ]


def missed(found: dict[str, Any]) -> list[str]:
    """Return the targets that were measured and missed."""
    all_, result = found["contestants"], []
    seconds = harness.timed(all_)
    for name, target in TARGETS.items():
        if name in seconds and harness.fastest(seconds[name]) > target * harness.fastest(seconds[NONE]):
            result.append(f"{name}: time over {target}")
        if name in all_ and all_[name]["peak"] > PEAK_TARGET * all_[NONE]["peak"]:
            result.append(f"{name}: peak memory over {PEAK_TARGET}")
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--size", choices=SIZES, default="small", help="the model (small)")
    parser.add_argument("--steps", type=harness.positive, help="steps a turn, a multiple of 10")
    parser.add_argument("--rounds", type=harness.positive, default=10, help="turns of each contestant (10)")
    parser.add_argument(
        "--only", type=harness.names, default=[], help="names of contestants, separated by semicolons"
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: seconds of all threads of this process, for a CPU that other work shares (wall)",
    )


def measure(options: argparse.Namespace, record: Record, limit: Limit) -> None:
    """Race the contestants of one size."""
    steps = options.steps or SIZES[options.size].steps
    about = SIZES[options.size].about
    record.found |= {"label": f"measures-{options.size}", "about": about, "steps": steps, "left_out": []}
    environment = {} if hardware.on_gpu() else harness.openblas()
    args = (options.size, steps, options.clock)
    with Worker("measures", Session, *args, environment=environment) as worker:
        record.keep(facts=worker.call("facts"), contestants={})
        names = prepare(worker, options.only, record, limit.share(PREPARING))

        def after(seconds: dict[str, list[float]]) -> None:
            for name, values in seconds.items():
                record.found["contestants"][name]["seconds"] = values
            record.keep()

        harness.take_turns(
            lambda: names, lambda name: worker.call("turn", name), rounds=options.rounds, limit=limit,
            after=after,
        )  # fmt: skip
