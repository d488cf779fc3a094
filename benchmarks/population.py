"""Small MLPs trained as a population against one after the other, both compiled.

The MLPs have two hidden layers of 64 units, a batch of 64 examples that all share, AdamW, and each
its own learning rate. One after the other: each step of each member is evaluated before the next
member's (`one by one`), or the steps of all members are evaluated together (`one graph`). Each
contestant has a process of its own, and they take turns.

The target is a time of the faster loop of at least 3 times that of the population on two CPU cores,
and 25 times on one GPU. Correctness comes first: after some steps all parameters must agree.
"""

import argparse
import itertools
import time
from typing import Any

import mlx.core as mx
import mlx.nn as nn

import purestep as ps
from benchmarks import harness
from benchmarks.harness import ContestantError, Limit, Panel, Record, Spread

TARGETS = {"cpu": 3.0, "gpu": 25.0}
FEATURES, CLASSES, TOLERANCE = 16, 4, 1e-3
POPULATION, LOOPS = "population", ("one by one", "one graph")


class MLP(nn.Module):
    """Two hidden layers."""

    def __init__(self, units: int):
        super().__init__()
        sizes = [FEATURES, units, units, CLASSES]
        self.layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]

    def __call__(self, x: mx.array) -> mx.array:
        """Return logits [batch, classes]."""
        for layer in self.layers[:-1]:
            x = nn.relu(layer(x))
        return self.layers[-1](x)


class Session:
    """One way to train all members, in the worker's process."""

    def __init__(self, name: str, members: int, units: int, rows: int, chunk: int | None):
        apply, _, _ = ps.functional(MLP(units))
        transform = ps.optimizers.adamw(1e-3)
        keys = mx.random.split(mx.random.key(0), 2)
        self._batch = {
            "x": mx.random.normal((rows, FEATURES), key=keys[0]),
            "y": mx.random.randint(0, CLASSES, (rows,), key=keys[1]),
        }

        def loss_fn(params: Any, batch: Any, rng: Any) -> ps.Mean:
            return ps.losses.cross_entropy(apply(params, batch["x"], rng=rng), batch["y"])

        def make(seed: int) -> ps.TrainState:
            with ps.rng.scope(mx.random.key(seed)):
                params = ps.functional(MLP(units))[1]
            return ps.TrainState.create(params, transform, seed=seed)

        rates = [1e-3 * 1.03**seed for seed in range(members)]
        states = ps.populations.create(make, range(members), learning_rate=rates)
        step = ps.train_step(loss_fn, transform)
        self._name = name
        self._one = ps.compiled(step)
        self._all = ps.compiled(ps.population(step, chunk=chunk))
        self._states: Any = states if name == POPULATION else ps.populations.members(states)
        mx.eval(self._states, self._batch)

    def seconds(self, steps: int) -> float:
        """Make so many steps of every member."""
        begin = time.perf_counter()
        for _ in range(steps):
            if self._name == POPULATION:
                self._states, metrics = self._all(self._states, self._batch)
                mx.eval(self._states, metrics)
                continue
            made = []
            for state in self._states:
                made.append(self._one(state, self._batch))
                if self._name == LOOPS[0]:
                    mx.eval(made[-1])
            mx.eval(made)
            self._states = [state for state, _ in made]
        return time.perf_counter() - begin

    def params(self) -> list[list[float]]:
        """Return the parameters of each member in one row."""
        states = ps.populations.members(self._states) if self._name == POPULATION else self._states
        rows = [mx.concatenate([x.reshape(-1) for x in ps.tree.leaves(state.params)]) for state in states]
        return mx.stack(rows).tolist()  # type: ignore[return-value]


def measure(options: argparse.Namespace, record: Record, limit: Limit) -> None:
    """Compare the parameters, then the seconds of a step of all members.

    Raises:
        ContestantError: if a contestant fails, or the parameters disagree.
    """
    device = "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"
    record.keep(facts=harness.facts(), target=TARGETS[device], members=options.members)
    built = {
        name: (name, options.members, options.units, options.rows, options.chunk)
        for name in (POPULATION, *LOOPS)
    }
    environment = harness.openblas() if device == "cpu" else {}
    with harness.workers(Session, built, cold=False, environment=environment) as workers:
        found = {}
        for worker in workers:
            harness.note(f"checking {worker.name}", passing=True)
            worker.call("seconds", 3)
            found[worker.name] = mx.array(worker.call("params"))
        for name in LOOPS:
            norm = mx.linalg.norm(found[POPULATION])
            apart: Any = (mx.linalg.norm(found[name] - found[POPULATION]) / norm).item()
            if not apart <= TOLERANCE:
                raise ContestantError(f"{name}: {apart:.2g} from the population, not {TOLERANCE}")
        steps, rounds = options.steps, options.rounds
        harness.race(
            workers, steps=steps, rounds=rounds, limit=limit, after=lambda made: record.keep(seconds=made)
        )


def ratio(found: dict[str, Any]) -> Spread:
    """Return the time of the faster loop over that of the population."""
    seconds = found["seconds"]
    faster = min(LOOPS, key=lambda name: Spread.of(seconds[name]).median)
    return Spread.of_ratios(seconds[faster], seconds[POPULATION])


def show(found: dict[str, Any]) -> str:
    """Write the table."""
    if "seconds" not in found:
        return harness.facts_lines(found["facts"]) + "\n\nnothing was measured"
    seconds, got, target = found["seconds"], ratio(found), found["target"]
    rows = [
        [
            name,
            Spread.of(made).show(2, 1e3),
            f"{1e3 * harness.fastest(made):.2f}",
            Spread.of_ratios(made, seconds[POPULATION]).show(2),
        ]
        for name, made in seconds.items()
    ]
    return "\n".join(
        [
            harness.facts_lines(found["facts"]),
            "",
            f"{found['members']} MLPs of two hidden layers, AdamW, compiled",
            harness.table(["contestant", "ms", "fastest ms", "of population"], rows),
            f"the faster loop takes {got.show()} times as long, target {target:g}: "
            f"{'reached' if got.median >= target else 'missed'}",
        ]
    )


def panels(found: dict[str, Any]) -> list[Panel]:
    """Return the picture."""
    bars = harness.bars(found.get("seconds", {}), POPULATION)
    return [Panel(f"{found['members']} small MLPs", "ms for a step of all, less is better", bars)]


def missed(found: dict[str, Any]) -> list[str]:
    """Return the target that is missed, if it is."""
    if "seconds" not in found or ratio(found).median >= found["target"]:
        return []
    return [f"the faster loop takes {ratio(found).show()} times as long, not {found['target']:g}"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--members", type=harness.positive, default=64, help="(64)")
    parser.add_argument("--units", type=harness.positive, default=64, help="of each hidden layer (64)")
    parser.add_argument("--rows", type=harness.positive, default=64, help="examples of a batch (64)")
    parser.add_argument("--chunk", type=harness.positive, help="members at a time (all)")
    parser.add_argument("--steps", type=harness.positive, default=10, help="steps a round (10)")
    parser.add_argument("--rounds", type=harness.positive, default=15, help="(15)")
