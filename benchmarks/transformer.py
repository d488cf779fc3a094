"""One training step of GPT-2: purestep against MLX by hand, torch and JAX, each in its own process.

A step is loss and gradients in bfloat16 over float32 weights, clipping to a global norm of 1, AdamW with a
weight decay of 0.01, and the update. "Packed" has its parameters as few vectors. "Tuned" also computes the
loss by `linear_cross_entropy`, of all tokens at once, and calls `configure_cuda` for less time and more
memory. "Lean" computes it in chunks of an eighth of the tokens, with a limit for memory. Both compile
microbatches one by one. All contestants start from the same weights and read the same tokens.
Before any time counts, loss and gradient norm of the first 5 steps must agree: with a float32 reference at
the sizes small and tiny, and with the median of the contestants at the size gpt2. Contestants take turns;
the order is shuffled each round, and the first steps of a turn are not timed. Each one starts a step before
it waits for the step before. A contestant that is not installed, fails, or is not ready after two thirds of
the time limit is a line of the table.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks import harness
from benchmarks.harness import Contestant, Limit, Machine, Panel, Record, Spread, Team, Worker
from benchmarks.peers import reference, with_jax, with_mlx, with_purestep, with_torch
from benchmarks.workloads import gpt

CHECKED = 5
FEW = 5  # contestants whose microbatches a device holds at once while they are prepared
TOLERANCE = {"bfloat16": (0.005, 0.05), "float32": (1e-4, 2e-3)}  # of loss and norm, relative
PURESTEP, PACKED, GRADIENTS = "purestep", "purestep, packed", "gradients alone"
TUNED, LEAN = "purestep, tuned", "purestep, lean"
TUNED_GRADIENTS = "tuned gradients"
TAXED = {PURESTEP: GRADIENTS, PACKED: GRADIENTS, TUNED: TUNED_GRADIENTS}
LEAST = "its products at the measured rate"
JAX_MEMORY = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def contestants(shape: gpt.Shape, microbatches: int, mlx: dict[str, str]) -> dict[str, Contestant]:
    """Return who competes; `mlx` are variables of the processes that use MLX."""
    args = (shape, microbatches)
    return {
        PURESTEP: Contestant(with_purestep.Step, args, environment=mlx),
        PACKED: Contestant(with_purestep.Packed, args, environment=mlx),
        TUNED: Contestant(with_purestep.Tuned, args, environment=mlx),
        LEAN: Contestant(with_purestep.Lean, args, environment=mlx),
        GRADIENTS: Contestant(with_purestep.Gradients, args, environment=mlx),
        TUNED_GRADIENTS: Contestant(with_purestep.TunedGradients, args, environment=mlx),
        "MLX by hand": Contestant(with_mlx.ByHand, args, environment=mlx),
        "torch eager": Contestant(with_torch.Step, (*args, False), ("torch",)),
        "torch compiled": Contestant(with_torch.Step, (*args, True), ("torch",)),
        "JAX + optax": Contestant(with_jax.Step, args, ("jax", "optax"), JAX_MEMORY, alone=True),
    }


def truth(shape: gpt.Shape, microbatches: int, mlx: dict[str, str]) -> list[list[float]] | None:
    """Return loss and norm of the first steps by the float32 reference, if the size has one."""
    if not shape.reference:
        return None
    harness.note("reference, float32")
    with Worker("reference", reference.Step, shape, microbatches, environment=mlx) as worker:
        return worker.call("first", CHECKED)["metrics"]


def agree(
    team: Team, made: dict[str, dict[str, Any]], want: list[list[float]] | None, dtype: str
) -> dict[str, list[float]]:
    """Drop who disagrees; return how far loss and norm of each are from what is wanted, relative."""
    whole = {name: made[name]["metrics"] for name in made if len(made[name]["metrics"][0]) == 2}
    if want is None:
        want = [
            [statistics.median(metrics[i][j] for metrics in whole.values()) for j in (0, 1)]
            for i in range(CHECKED)
        ] if whole else [[math.nan] * 2] * CHECKED  # fmt: skip
    apart: dict[str, list[float]] = {}
    for name, result in made.items():
        got = result["metrics"]
        checked = got if len(got[0]) == 2 else got[:1]  # gradients alone: the weights stay those of the start
        pairs = [zip(step, wanted, strict=False) for step, wanted in zip(checked, want, strict=False)]
        differences = [[abs(a - b) / abs(b) for a, b in step] for step in pairs]
        apart[name] = [max(column) for column in zip(*differences, strict=True)]
        limits = TOLERANCE[dtype]
        if whole and not all(x <= limit for x, limit in zip(apart[name], limits, strict=False)):
            shown = ", ".join(f"{x:.2g}" for x in apart[name])
            team.drop(name, f"disagrees: loss and norm by {shown} (tolerance {limits[0]}, {limits[1]})")
    return apart


def compete(
    shape: gpt.Shape,
    options: argparse.Namespace,
    record: Record,
    limit: Limit,
    *,
    microbatches: int = 1,
    who: Callable[[gpt.Shape, int, dict[str, str]], dict[str, Contestant]] = contestants,
    environment: dict[str, str] | None = None,
) -> None:
    """Measure one shape; `environment` are variables of the processes that use MLX."""
    environment = environment or {}
    with Worker("machine", Machine, environment=environment) as machine:
        record.keep(
            facts=machine.call("facts"), shape=shape._asdict(), microbatches=microbatches, contestants={},
            failures={}, wanted=shape.reference, limits=machine.call("limits", shape.dtype),
            tokens=shape.rows * shape.context * microbatches,
        )  # fmt: skip
    found = record.found
    found["flops"] = _flops(shape) * found["tokens"]
    want = truth(shape, microbatches, environment)
    all_ = who(shape, microbatches, environment)
    sparing = microbatches > 1 and len(options.only or all_) > FEW
    team = Team(all_, options.only, sparing=sparing, limit=limit)
    with team:
        found["failures"] = team.failures
        harness.note("first steps")
        made = team.together("first", CHECKED)
        apart = agree(team, made, want, shape.dtype)
        for name in team.names:
            found["contestants"][name] = {
                "first": made[name]["seconds"], "metrics": made[name]["metrics"],
                "note": made[name]["note"], "apart": apart[name], "peak": team.call(name, "peak", 4),
            }  # fmt: skip

        def after(seconds: dict[str, list[float]]) -> None:
            for name, values in seconds.items():
                found["contestants"][name]["seconds"] = values
            record.keep(contestants={name: found["contestants"][name] for name in seconds})

        harness.note("turns")
        team.race(options.steps, options.rounds, after)


def _flops(shape: gpt.Shape) -> int:
    from purestep.metrics import transformer_flops

    multiplied = gpt.parameters(shape, multiplied=True)
    return transformer_flops(multiplied, layers=shape.layers, width=shape.width, context=shape.context)


def show(found: dict[str, Any]) -> str:
    """Write the table."""
    shape, limits, all_ = gpt.Shape(**found["shape"]), found["limits"], found["contestants"]
    base = all_.get(PURESTEP, {})
    peak_flops = limits["published"] or limits["matmul"]
    rows = []
    for name, result in all_.items():
        seconds, memory = result.get("seconds", []), result["peak"]
        median = Spread.of(seconds).median if seconds else math.nan
        rows.append(
            [
                name,
                harness.milliseconds(seconds),
                f"{found['tokens'] / median / 1e3:.1f}",
                "-" if memory is None else f"{memory / 1e9:.2f}",
                "1" if name == PURESTEP else harness.ratio(base.get("seconds", []), seconds),
                "-" if not (memory and base.get("peak")) else f"{base['peak'] / memory:.2f}",
                f"{100 * found['flops'] / median / peak_flops:.1f} %",
                f"{result['first']:.0f}",
            ]
        )
    head = ["contestant", "ms/step (quartiles)", "ktok/s", "peak GB", "purestep / it", "memory / its", "MFU"]
    products, copies = limits["matmul"] / 1e12, limits["copy"] / 1e9
    lines = [
        harness.facts_lines(found["facts"]),
        f"{shape.about()} x {found['microbatches']}, {gpt.parameters(shape) / 1e6:.1f}M parameters; "
        f"{rounds(all_)} rounds of {found['options']['steps']} steps",
        f"measured here: products {products:.3g} TFLOP/s, copies {copies:.3g} GB/s; MFU over "
        f"{'the published' if limits['published'] else 'the measured'} {peak_flops / 1e12:.3g} TFLOP/s",
        "",
        harness.table([*head, "first s"], rows),
        *(f"{name}: {reason}" for name, reason in found["failures"].items()),
        *(f"{name}: {result['note']}" for name, result in all_.items() if result["note"]),
        *_tax(all_),
        *_agreement(found),
    ]
    return "\n".join(lines)


def rounds(all_: dict[str, Any]) -> int:
    """Return how many rounds contestants have finished."""
    return max((len(each.get("seconds", [])) for each in all_.values()), default=0)


def panels(found: dict[str, Any]) -> list[Panel]:
    """Return the picture: time over what the products alone would take, and peak memory."""
    all_, shape = found["contestants"], gpt.Shape(**found["shape"])
    about = f"{gpt.parameters(shape) / 1e6:.0f}M parameters, {shape.rows} x {shape.context} tokens"
    about += f" x {found['microbatches']}, {shape.dtype}"
    least = 1e3 * found["flops"] / found["limits"]["matmul"]
    seconds = harness.timed(all_)
    return [
        Panel(f"A step: {about}", "ms, less is better", harness.bars(seconds, PURESTEP), least, LEAST),
        harness.sizes("Peak memory", {name: all_[name]["peak"] for name in seconds}, PURESTEP),
    ]


def missed(found: dict[str, Any]) -> list[str]:
    """Return the contestants that failed or disagreed, but not those that are not installed."""
    return [name for name, why in found["failures"].items() if not why.startswith("not installed")]


def _tax(all_: dict[str, Any]) -> list[str]:
    found = []
    for name, gradients in TAXED.items():
        alone = all_.get(gradients, {}).get("seconds", [])
        if alone and (whole := all_.get(name, {}).get("seconds", [])):
            taxes = [(a - b) / b for a, b in zip(whole, alone, strict=True)]
            found.append(f"{Spread.of(taxes).show(1, 100)} % ({name})")
    return [f"trainer's tax, (step - gradients) / gradients: {', '.join(found)}"] if found else []


def _agreement(found: dict[str, Any]) -> list[str]:
    every = [result["apart"] for result in found["contestants"].values()]
    if not every:
        return []
    loss = max(apart[0] for apart in every)
    norm = max((apart[1] for apart in every if len(apart) > 1), default=math.nan)
    against = "a float32 reference" if found["wanted"] else "the contestants' median"
    limits = TOLERANCE[found["shape"]["dtype"]]
    losses = next(iter(found["contestants"].values()))["metrics"]
    return [
        f"first {CHECKED} steps against {against}: loss within {loss:.1g} (tolerance {limits[0]}), norm "
        f"within {norm:.1g} ({limits[1]}); losses " + " ".join(f"{step[0]:.3f}" for step in losses)
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--size", choices=gpt.SIZES, default="gpt2")
    parser.add_argument("--microbatches", type=harness.positive, default=1)
    add_common(parser, steps=10, rounds=6)


def add_common(parser: argparse.ArgumentParser, *, steps: int, rounds: int) -> None:
    """Declare the options that the benchmarks with peers share."""
    parser.add_argument(
        "--only", type=harness.names, default=[], metavar='"A;B"', help="names of contestants, by semicolons"
    )
    parser.add_argument("--steps", type=harness.positive, default=steps, help=f"steps a turn ({steps})")
    parser.add_argument("--rounds", type=harness.positive, default=rounds, help=f"turns of each ({rounds})")


def measure(options: argparse.Namespace, record: Record, limit: Limit) -> None:
    """Measure one size."""
    record.found["label"] = f"transformer-{options.size}-{options.microbatches}"
    compete(gpt.SIZES[options.size], options, record, limit, microbatches=options.microbatches)
