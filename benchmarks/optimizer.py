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

from benchmarks import harness
from benchmarks.harness import (
    Contestant,
    ContestantError,
    Limit,
    Machine,
    Panel,
    Record,
    Spread,
    Team,
    Worker,
)
from benchmarks.peers import update_jax, update_mlx, update_torch, with_torch
from benchmarks.transformer import JAX_MEMORY, PURESTEP, add_common, rounds
from benchmarks.workloads import gpt

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


def race(shape: gpt.Shape, work: str, options: argparse.Namespace, record: Record, limit: Limit) -> None:
    """Measure one kind of update."""
    clip, result = WORK[work][0], {"contestants": {}, "failures": {}}
    record.found["works"][work] = result
    start, want = gpt.sampled(gpt.weights(shape)), gpt.moved(shape, CHECKED, clip=clip)
    largest = max(abs(x) for x in want)
    with Team(contestants(shape, clip), options.only, limit=limit) as team:
        result["failures"] = team.failures
        made = team.together("first", CHECKED)
        for name, first in made.items():
            moved = zip(start, first["metrics"][-1], want, strict=True)
            apart = max(abs(b - a - w) for a, b, w in moved) / largest
            if not apart <= TOLERANCE:
                team.drop(name, f"disagrees: moved otherwise by {apart:.2g} (tolerance {TOLERANCE})")
                continue
            result["contestants"][name] = {
                "peak": team.call(name, "peak", 5), "apart": apart, "first": first["seconds"],
                "note": first["note"],
            }  # fmt: skip

        def after(seconds: dict[str, list[float]]) -> None:
            for name, values in seconds.items():
                result["contestants"][name]["seconds"] = values
            result["contestants"] = {name: result["contestants"][name] for name in seconds}
            record.keep()

        team.race(options.steps, options.rounds, after)


def measure(options: argparse.Namespace, record: Record, limit: Limit) -> None:
    """Measure both kinds of update."""
    shape = gpt.SIZES[options.size]
    record.found |= {
        "label": f"optimizer-{options.size}", "parameters": gpt.parameters(shape),
        "arrays": len(gpt.shapes(shape)), "works": {},
    }  # fmt: skip
    with Worker("machine", Machine) as machine:
        record.keep(facts=machine.call("facts"), copies={"MLX": machine.call("copy")})
    if importlib.util.find_spec("torch"):
        try:
            with Worker("torch", with_torch.Copy) as worker:
                record.found["copies"]["torch"] = worker.call("rate")
        except ContestantError as error:
            harness.note(str(error))
    for index, name in enumerate(WORK):
        harness.note(name)
        race(shape, name, options, record, limit.share(1 / (len(WORK) - index)))


def show(found: dict[str, Any]) -> str:
    """Write a table for each kind of update."""
    copies, count = found["copies"], found["parameters"]
    made = max((rounds(result["contestants"]) for result in found["works"].values()), default=0)
    lines = [
        harness.facts_lines(found["facts"]),
        f"{count / 1e6:.1f}M float32 parameters in {found['arrays']} arrays; {made} rounds of "
        f"{found['options']['steps']} updates",
        "copies, GB/s: " + ", ".join(f"{name} {rate / 1e9:.3g}" for name, rate in copies.items()),
    ]
    for work, result in found["works"].items():
        all_, least = result["contestants"], _least(found, work)
        base = all_.get(PURESTEP, {}).get("seconds", [])
        rows = []
        for name, each in all_.items():
            seconds = each.get("seconds", [])
            rows.append(
                [
                    name,
                    harness.milliseconds(seconds),
                    f"{100 * least / Spread.of(seconds).median:.0f} %" if seconds else "-",
                    "-" if each["peak"] is None else f"{each['peak'] / 1e9:.2f}",
                    harness.ratio(base, seconds),
                    f"{each['apart']:.1g}",
                    f"{each['first']:.1f}",
                ]
            )
        head = ["contestant", "ms (quartiles)", "of limit", "peak GB", "purestep / it", "apart", "first s"]
        lines += [
            "",
            f"{work}: {WORK[work][1]} bytes a parameter, limit {1e3 * least:.2f} ms",
            harness.table(head, rows),
            *(f"{name}: {reason}" for name, reason in result["failures"].items()),
        ]
    return "\n".join(lines)


def _least(found: dict[str, Any], work: str) -> float:
    return WORK[work][1] * found["parameters"] / max(found["copies"].values())


def panels(found: dict[str, Any]) -> list[Panel]:
    """Return a diagram for each kind of update, over the time that its bytes take to copy."""
    return [
        Panel(
            f"{work}: {found['parameters'] / 1e6:.1f}M float32 parameters, {found['arrays']} arrays",
            "ms, less is better",
            harness.bars(harness.timed(result["contestants"]), PURESTEP),
            1e3 * _least(found, work),
            "its bytes at the measured rate of a copy",
        )
        for work, result in found["works"].items()
    ]


def missed(found: dict[str, Any]) -> list[str]:
    """Return the contestants that failed or disagreed, but not those that are not installed."""
    return [
        f"{work}: {name}"
        for work, result in found["works"].items()
        for name, why in result["failures"].items()
        if not why.startswith("not installed")
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--size", choices=gpt.SIZES, default="gpt2", help="whose arrays; small for a CPU")
    add_common(parser, steps=30, rounds=8)
