"""Clipping by the global norm and AdamW over given gradients, and AdamW alone, with GPT-2's arrays.

Each contestant has a process of its own, and they take turns. The limit is measured in the same run: the
bytes that must move, divided by the rate of a copy, the faster one of MLX's and torch's. AdamW must read
parameters, gradients and two moments, and write all but the gradients: 28 bytes for each float32 parameter.
Clipping reads the gradients once more: 32. Before any time counts, parameters after 5 updates are compared
with those that numpy computes in float64.
"""

import argparse
import importlib.util
from typing import Any

from benchmarks import gpt, harness
from benchmarks.harness import ContestantError, Spread, Worker
from benchmarks.peers import update_jax, update_mlx, update_torch, with_torch
from benchmarks.team import Contestant, Machine, Team, milliseconds
from benchmarks.transformer import JAX_MEMORY, PURESTEP, add_common, chosen, report

CHECKED, TOLERANCE = 5, 0.01  # updates, and the largest difference as a share of the largest movement
WORK = {"clip + AdamW": (True, 32), "AdamW": (False, 28)}  # whether to clip, and bytes a parameter


def contestants(shape: gpt.Shape, clip: bool) -> dict[str, Contestant]:
    """Return who competes."""
    found = {name: Contestant(update_mlx.build, (shape, clip, name)) for name in update_mlx.MAKE}
    for implementation in ("fused", "foreach"):
        args = (shape, clip, implementation)
        found[f"torch {implementation}"] = Contestant(update_torch.Update, args, ("torch",))
    jax = Contestant(update_jax.Update, (shape, clip), ("jax", "optax"), JAX_MEMORY, alone=True)
    return found | {"optax": jax}


def race(shape: gpt.Shape, clip: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one kind of update."""
    start, want = gpt.sampled(gpt.weights(shape)), gpt.moved(shape, CHECKED, clip=clip)
    largest = max(abs(x) for x in want)
    with Team(contestants(shape, clip), chosen(options.only)) as team:
        made, apart = team.together("first", CHECKED), {}
        for name, result in made.items():
            after = result.pop("metrics")[-1]
            apart[name] = max(abs(b - a - w) for a, b, w in zip(start, after, want, strict=True)) / largest
            if not apart[name] <= TOLERANCE:
                team.drop(name, f"disagrees: moved otherwise by {apart[name]:.2g} (tolerance {TOLERANCE})")
        peaks = {name: team.call(name, "peak", 5) for name in team.names}
        seconds = team.race(options.steps, options.rounds)
        found: dict[str, Any] = {
            name: {
                "seconds": values, "step": Spread.of(values)._asdict(), "peak": peaks.get(name),
                "apart": apart[name], "first": made[name]["seconds"], "note": made[name]["note"],
            }
            for name, values in seconds.items()
        }  # fmt: skip
        return {"contestants": found, "failures": team.failures}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return everything that was measured."""
    shape = gpt.SIZES[options.size]
    with Worker("machine", Machine) as machine:
        facts, copies = machine.call("facts"), {"MLX": machine.call("copy")}
    if importlib.util.find_spec("torch"):
        try:
            with Worker("torch", with_torch.Copy) as worker:
                copies["torch"] = worker.call("rate")
        except ContestantError as error:
            harness.note(str(error))
    works = {}
    for name, (clip, _) in WORK.items():
        harness.note(name)
        works[name] = race(shape, clip, options)
    failures = {
        f"{work}: {name}": why for work, result in works.items() for name, why in result["failures"].items()
    }
    return {
        "shape": shape._asdict(), "parameters": gpt.parameters(shape), "arrays": len(gpt.shapes(shape)),
        "facts": facts, "copies": copies, "works": works, "failures": failures,
        "steps": options.steps, "rounds": options.rounds,
    }  # fmt: skip


def show(found: dict[str, Any]) -> str:
    """Write a table for each kind of update."""
    copies, count = found["copies"], found["parameters"]
    lines = [
        harness.facts_lines(found["facts"]),
        f"{count / 1e6:.1f}M float32 parameters in {found['arrays']} arrays; {found['rounds']} rounds of "
        f"{found['steps']} updates",
        "copies, GB/s: " + ", ".join(f"{name} {rate / 1e9:.3g}" for name, rate in copies.items()),
    ]
    for work, (_, each) in WORK.items():
        all_ = found["works"][work]["contestants"]
        limit, base = each * count / max(copies.values()), all_.get(PURESTEP)
        rows = [
            [
                name,
                milliseconds(result["seconds"]),
                f"{100 * limit / result['step']['median']:.0f} %",
                "-" if result["peak"] is None else f"{result['peak'] / 1e9:.2f}",
                "-" if base is None else Spread.of_ratios(base["seconds"], result["seconds"]).show(),
                f"{result['apart']:.1g}",
                f"{result['first']:.1f}",
            ]
            for name, result in all_.items()
        ]
        head = ["contestant", "ms (quartiles)", "of limit", "peak GB", "purestep / it", "apart", "first s"]
        lines += [
            "",
            f"{work}: {each} bytes a parameter, limit {1e3 * limit:.2f} ms",
            harness.table(head, rows),
        ]
    return "\n".join([*lines, *(f"{name}: {reason}" for name, reason in found["failures"].items())])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--size", choices=gpt.SIZES, default="gpt2", help="whose arrays; small for a CPU")
    add_common(parser, steps=30, rounds=8)


def run(options: argparse.Namespace) -> int:
    """Measure both kinds of update."""
    found = measure(options)
    return report(f"optimizer-{options.size}", found, show(found), options)
