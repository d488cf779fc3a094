"""`train_step(measure=...)` against the same compiled step without measurements: time and peak memory.

All contestants share one model, one start and one source. They take turns of --steps steps in an order that
is shuffled each round, with `mx.async_eval` after each step. First comes the cost of each measurement in
every step: divided by n, it is the cost of `every=n`. Then come the sets with a target. The parameters after
a turn are compared first: a measurement must not change them. On CUDA two equal loops differ, since
gradients of lookups are summed in any order; there the others may differ by twice as much.

Targets over no measurement: all measurements every 10 steps (curvature: every 100 steps, on a part of the
batch) at most 1.02 of the time, norms in every step at most 1.01, and peak memory at most 1.02.
"""

import argparse
import json
import random
import time
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

import purestep as ps
from benchmarks import harness
from benchmarks.harness import ContestantError, Spread
from benchmarks.workloads.models import Transformer, tokens

NONE, AGAIN = "none", "none, again"
MICROBATCHES = 2


class Size(NamedTuple):
    """A model and its batches.

    Attributes:
        about: one line for the table.
        steps: in a turn.
        shape: vocabulary, context, width, layers and heads.
        rows: of a batch.
        dtype: of the forward and backward pass.
    """

    about: str
    steps: int
    shape: tuple[int, int, int, int, int]
    rows: int
    dtype: mx.Dtype


SIZES = {
    "tiny": Size("width 64, 2 layers, 4 x 32 tokens", 100, (256, 32, 64, 2, 4), 4, mx.float32),
    "small": Size("width 256, 4 layers, 8 x 128 tokens", 10, (512, 128, 256, 4, 8), 8, mx.float32),
    "gpt2": Size(
        "GPT-2's 12 layers of width 768 with an own head (163M), 8 x 1024 tokens", 100,
        (50304, 1024, 768, 12, 12), 8, mx.bfloat16,
    ),
}  # fmt: skip


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
    """The contestants: a compiled step for each set of measurements."""

    def __init__(self, name: str, steps: int, clock: str):
        self.clock = time.process_time if clock == "cpu" else time.perf_counter
        size = SIZES[name]
        vocabulary, context, width, layers, heads = size.shape
        with ps.rng.scope(mx.random.key(0)):
            model: nn.Module = Transformer(vocabulary, context, width, layers, heads, 0.0)
            mx.eval(model.parameters())
        apply, params, _ = ps.functional(model)
        del model

        def loss_fn(params: Any, batch: Any, rng: Any) -> ps.Mean:
            logits = apply(ps.tree.cast(params, size.dtype), batch["inputs"], rng=rng)
            return ps.losses.cross_entropy(logits, batch["targets"])

        transform = ps.chain(ps.transforms.clip_by_global_norm(1.0), ps.optimizers.adamw(1e-4))
        self.steps = steps
        self.batches = [tokens(mx.random.key(i), size.rows, context, vocabulary) for i in range(8)]
        self.start = ps.TrainState.create(params, transform)
        mx.eval(self.start, self.batches)

        def step(*measure: ps.metrics.Measurement) -> Any:
            return ps.compiled(ps.train_step(loss_fn, transform, microbatches=MICROBATCHES, measure=measure))

        single = measurements(params, size.rows, 1, 1)
        tenth = measurements(params, size.rows, 10, 100)
        norms = [single[each] for each in ("grad_norms", "weight_norms")]
        self.contestants = {
            NONE: step(),
            AGAIN: step(),
            **{f"{each}, every step": step(measurement) for each, measurement in single.items()},
            "norms, every step": step(*norms),
            "all, every 10": step(*tenth.values()),
        }

    def turn(self, contestant: str) -> tuple[float, ps.TrainState]:
        """Return the seconds a step, and the last state."""
        state, step, begun = self.start, self.contestants[contestant], self.clock()
        before: Any = []
        for number in range(self.steps):
            state, metrics = step.at(number)(state, self.batches[number % len(self.batches)])
            mx.async_eval(state, metrics)
            mx.eval(before)  # at most one step ahead, as in `run`
            before = metrics
        mx.eval(state)
        return (self.clock() - begun) / self.steps, state

    def peak(self, contestant: str) -> int:
        """Return the peak of memory over a turn, in bytes."""
        mx.clear_cache()
        mx.reset_peak_memory()
        self.turn(contestant)
        return mx.get_peak_memory()

    def agree(self) -> dict[str, int]:
        """Warm everything up, and compare the ends of the turns; return the number of traces.

        Raises:
            ContestantError: if measurements change the parameters.
        """
        ends: dict[str, Any] = {}
        want = self.turn(NONE)[1].params
        way = ps.tree.norm(ps.tree.map(lambda a, b: a - b, want, self.start.params))
        for name in self.contestants:
            difference = ps.tree.map(lambda a, b: a - b, self.turn(name)[1].params, want)
            ends[name] = (ps.tree.norm(difference) / way).item()
            if not ends[name] <= 2 * ends.get(AGAIN, ends[name]):
                raise ContestantError(f"{name} ends {ends[name]:.2g} of its way from {NONE}")
        return {name: step.traces for name, step in self.contestants.items()}


def measure(name: str, steps: int, rounds: int, only: str | None, clock: str) -> dict[str, Any]:
    """Race the contestants of one size; return the seconds a step of each turn and the peaks."""
    session = Session(name, steps, clock)
    if only is not None:
        kept = {NONE, AGAIN, *only.split(";")}
        session.contestants = {key: step for key, step in session.contestants.items() if key in kept}
    traces = session.agree()
    order, shuffled = list(session.contestants), random.Random(0)
    seconds: dict[str, list[float]] = {contestant: [] for contestant in order}
    for number in range(rounds):
        harness.note(f"round {number + 1} of {rounds}", passing=True)
        shuffled.shuffle(order)
        for contestant in order:
            seconds[contestant].append(session.turn(contestant)[0])
    return {
        "about": SIZES[name].about,
        "steps": steps,
        "traces": traces,
        "seconds": seconds,
        "peak": {contestant: session.peak(contestant) for contestant in seconds},
        "over_none": {
            contestant: Spread.of_ratios(values, seconds[NONE])._asdict()
            for contestant, values in seconds.items()
        },
    }


def show(name: str, measured: dict[str, Any]) -> str:
    """Write one size's results."""
    seconds, peak = measured["seconds"], measured["peak"]
    rows = [
        [
            contestant,
            Spread.of(values).show(2, 1e3),
            Spread(**measured["over_none"][contestant]).show(3),
            f"{harness.fastest(values) / harness.fastest(seconds[NONE]):.3f}",
            f"{peak[contestant] / 1e6:.1f}",
            f"{peak[contestant] / peak[NONE]:.3f}",
            str(measured["traces"][contestant]),
        ]
        for contestant, values in seconds.items()
    ]
    head = ["measurements", "ms/step (quartiles)", "over none", "fastest", "peak MB", "over none", "traces"]
    about = f"{name}: {measured['about']}, {MICROBATCHES} microbatches, turns of {measured['steps']} steps"
    return f"{about}\n{harness.table(head, rows)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--size", choices=SIZES, default="small", help="the model (small)")
    parser.add_argument("--steps", type=harness.positive, help="steps a turn, a multiple of 10")
    parser.add_argument("--rounds", type=harness.positive, default=10, help="turns of each contestant (10)")
    parser.add_argument("--only", help="names of contestants, separated by semicolons")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: seconds of all threads of this process, for a CPU that other work shares (wall)",
    )
    parser.add_argument("--json", action="store_true", help="print everything measured as JSON")


def run(options: argparse.Namespace) -> int:
    """Measure one size."""
    facts = harness.facts()
    steps = options.steps or SIZES[options.size].steps
    measured = measure(options.size, steps, options.rounds, options.only, options.clock)
    if options.json:
        print(json.dumps({"benchmark": "measures", "facts": facts, options.size: measured}, indent=1))
    else:
        print(harness.facts_lines(facts) + "\n\n" + show(options.size, measured))
    return 0
