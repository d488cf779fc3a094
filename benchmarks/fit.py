"""`ps.run` and `ps.fit` against bare loops around the same compiled step.

All contestants share one step, one start and one source, and take turns of --steps steps in an order
shuffled each round. A turn is timed from the end of its first steps to the end of its last one, so
the start and the wait for the last checkpoint are not in it, a checkpoint in the middle of the turn is.
Before a time is reported, the parameters of all contestants after a short turn are compared. On a CPU they
are equal bit for bit. On CUDA two equal loops differ, since gradients of lookups are summed in any order: the
others may differ by twice as much.

On a CPU, MLX multiplies with OpenBLAS where that is installed.

Targets: `run` and `fit` with everything on cost at most 2 % over the bare loop with `mx.async_eval`, and less
time than the one with `mx.eval`.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from rich.console import Console

import purestep as ps
from benchmarks import harness
from benchmarks.harness import Limit, Panel, Record, Spread, Worker
from benchmarks.workloads.models import GPT2, Size
from purestep._core import hardware
from purestep.callbacks import Callback

BARE, WAITING, AGAIN = "loop, async_eval", "loop, eval", "loop, async_eval, again"
SKIPPED = 3  # steps of a turn before the clock starts
AGREEMENT_STEPS = 10
TARGET = 1.02


SIZES = {
    "small": Size("width 128, 2 layers, 4 x 64 tokens", 60, (256, 64, 128, 2, 4), 4, mx.float32),
    "gpt2": GPT2,
}


class Tokens:
    """Random tokens by step: what a training set in memory costs to read."""

    def __init__(self, size: Size):
        vocabulary, context = size.shape[:2]
        self._tokens = mx.random.randint(0, vocabulary, (64, size.rows, context + 1), key=mx.random.key(1))
        mx.eval(self._tokens)

    def at(self, step: int) -> dict[str, mx.array]:
        """Return the batch of a step."""
        rows = self._tokens[step % len(self._tokens)]
        return {"inputs": rows[:, :-1], "targets": rows[:, 1:]}


class Clock(Callback):
    """Notes when the first steps and the last one end."""

    def __init__(self, steps: int):
        self._steps, self.begun, self.ended = steps, 0.0, 0.0

    def on_step_end(self, progress: Any) -> None:
        """Note the time."""
        if progress.step == SKIPPED:
            self.begun = time.perf_counter()
        if progress.step == self._steps:
            self.ended = time.perf_counter()


class Session:
    """The step, the start and the contestants; each returns seconds of a turn and the last state."""

    def __init__(self, name: str, steps: int):
        size = SIZES[name]
        loss_fn, params, transform = size.problem()
        self.parameters = sum(leaf.size for leaf in ps.tree.leaves(params))
        self.step, self.source, self.steps = (
            ps.compiled(ps.train_step(loss_fn, transform)),
            Tokens(size),
            steps,
        )
        self.start = ps.TrainState.create(params, transform)
        mx.eval(self.start)
        self.contestants: dict[str, Callable[[], tuple[float, ps.TrainState]]] = {
            WAITING: lambda: self._loop(mx.eval),
            BARE: lambda: self._loop(mx.async_eval),
            AGAIN: lambda: self._loop(mx.async_eval),
            "ps.run": self._run,
            "ps.fit, plain": lambda: self._fit(),
            "ps.fit, all callbacks": lambda: self._everything(save=False),
            "ps.fit, and a checkpoint": lambda: self._everything(save=True),
        }

    def _loop(self, evaluate: Callable[..., None]) -> tuple[float, ps.TrainState]:
        state, begun = self.start, 0.0
        for number in range(self.steps):
            if number == SKIPPED:
                mx.eval(state)
                begun = time.perf_counter()
            state, metrics = self.step(state, self.source.at(number))
            evaluate(state, metrics)
        mx.eval(state)
        return time.perf_counter() - begun, state

    def _run(self) -> tuple[float, ps.TrainState]:
        state, begun = self.start, 0.0
        for number, (after, _) in enumerate(
            ps.run(self.step, self.start, self.source, steps=self.steps), start=1
        ):
            state = after
            if number == SKIPPED:
                begun = time.perf_counter()
        mx.eval(state)
        return time.perf_counter() - begun, state

    def _fit(self, *callbacks: Any, **options: Any) -> tuple[float, ps.TrainState]:
        clock = Clock(self.steps)
        result = ps.fit(
            self.step, self.start, self.source, steps=self.steps, callbacks=[*callbacks, clock], **options
        )
        return clock.ended - clock.begun, result.state

    def _everything(self, *, save: bool) -> tuple[float, ps.TrainState]:
        with (
            tempfile.TemporaryDirectory() as folder,
            ps.checkpoint.Checkpointer(folder) as checkpointer,
            Path(os.devnull).open("w") as nowhere,
        ):
            terminal = Console(file=nowhere, force_terminal=True, width=100)
            shown = [
                ps.callbacks.progress(console=terminal),
                ps.callbacks.jsonl(f"{folder}/metrics.jsonl"),
                ps.callbacks.throughput(),
                ps.callbacks.divergence(),
            ]
            if not save:
                return self._fit(*shown)
            return self._fit(*shown, checkpointer=checkpointer, save_every=self.steps // 2 + 1)

    def names(self) -> list[str]:
        """Return the names of the contestants."""
        return list(self.contestants)

    def facts(self) -> dict[str, Any]:
        """Return what the numbers depend on beside the code."""
        return harness.facts()

    def count(self) -> int:
        """Return the number of parameters."""
        return self.parameters

    def turn(self, contestant: str, steps: int) -> float:
        """Return the seconds a step of one turn."""
        self.steps = steps
        return self.contestants[contestant]()[0] / (steps - SKIPPED)

    def agree(self) -> float:
        """Return how far the contestants end apart, as a share of the way from the start; warm everything up.

        Raises:
            ValueError: if one is further from the first loop than twice what two equal loops are apart.
        """
        turns = {name: turn()[1].params for name, turn in self.contestants.items()}
        want = turns[BARE]
        way = ps.tree.norm(ps.tree.map(lambda a, b: a - b, want, self.start.params))
        apart: dict[str, Any] = {
            name: (ps.tree.norm(ps.tree.map(lambda a, b: a - b, params, want)) / way).item()
            for name, params in turns.items()
        }
        for name, distance in apart.items():
            if not distance <= 2 * apart[AGAIN]:
                raise ValueError(f"{name} and {BARE} end {distance:.2g} of their way apart")
        return max(apart.values())


def show(found: dict[str, Any]) -> str:
    """Write the results."""
    base = found["seconds"].get(BARE, [])
    rows = [
        [
            contestant,
            harness.milliseconds(values),
            harness.ratio(values, base, 3),
            f"{harness.fastest(values) / harness.fastest(base):.3f}",
        ]
        for contestant, values in found["seconds"].items()
        if values
    ]
    head = ["contestant", "ms/step (quartiles)", f"over {BARE}", "of the fastest turns"]
    turns = f"{len(base)} turns of {found['steps']} steps, ends {found['apart']:.1g} of their way apart"
    about = f"{found['options']['size']}: {found['about']}; {turns}"
    goal = f"target: run, and fit with everything on, at most {TARGET} of {BARE}, and less than {WAITING}"
    lost = missed(found)
    verdict = f"missed by {'; '.join(lost)}" if lost else "reached" if base else "not measured"
    return "\n".join(
        [harness.facts_lines(found["facts"]), "", about, harness.table(head, rows), f"{goal}: {verdict}"]
    )


def panels(found: dict[str, Any]) -> list[Panel]:
    """Return the picture."""
    return [Panel(found["about"], "ms a step, less is better", harness.bars(found["seconds"], BARE))]


def missed(found: dict[str, Any]) -> list[str]:
    """Return the contestants that miss the target."""
    seconds = {name: values for name, values in found["seconds"].items() if values}
    if BARE not in seconds or WAITING not in seconds:
        return []
    over = {name: Spread.of_ratios(values, seconds[BARE]).median for name, values in seconds.items()}
    ours = [name for name in over if name.startswith("ps.")]
    return [name for name in ours if over[name] > min(TARGET, max(1.0, over[WAITING]))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--size", choices=SIZES, default="small", help="the model (small)")
    parser.add_argument("--steps", type=harness.positive, help="steps a turn (60)")
    parser.add_argument("--rounds", type=harness.positive, default=20, help="turns of each contestant (20)")


def measure(options: argparse.Namespace, record: Record, limit: Limit) -> None:
    """Race the contestants of one size."""
    steps = options.steps or SIZES[options.size].steps
    record.found |= {"label": f"fit-{options.size}", "about": SIZES[options.size].about, "steps": steps}
    environment = {} if hardware.on_gpu() else harness.openblas()
    with Worker("fit", Session, options.size, AGREEMENT_STEPS, environment=environment) as worker:
        harness.note("first steps, and agreement")
        names, apart = worker.call("names"), worker.call("agree")
        record.keep(facts=worker.call("facts"), apart=apart, parameters=worker.call("count"), seconds={})
        harness.take_turns(
            lambda: names, lambda name: worker.call("turn", name, steps), rounds=options.rounds,
            limit=limit, after=lambda seconds: record.keep(seconds=seconds),
        )  # fmt: skip
