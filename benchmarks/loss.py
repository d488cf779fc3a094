"""Time and peak memory of the loss of an output projection and its gradients: in chunks, plain, and by peers.

Plain is `mx.fast.cross_entropy(hidden @ weight.T, targets).mean()`. The others are `nn.losses.cross_entropy`
of float32 logits, torch (eager and compiled), optax, and `purestep.losses.linear_cross_entropy`, which
computes the logits in chunks of so many tokens. Each contestant has a process of its own. Peaks are over the
inputs and the gradients. The target, at one of the chunk sizes: at most 0.35 of plain's peak and, on a GPU,
at no more than 1.15 of its time. On a CPU, MLX multiplies with OpenBLAS where that is installed.

Correctness comes first: on a small float32 problem, the loss and samples of the gradients must agree with
plain's. At the size that is measured, `error` is how far samples of the gradients are from those of plain in
float32, relative to their norm. The limit is the time of the three products at the rate measured here; chunks
compute the logits a second time.
"""

import argparse
from typing import Any

from benchmarks import harness, transformer
from benchmarks.harness import Contestant, Limit, Machine, Panel, Record, Spread, Team, Worker
from benchmarks.peers import loss_jax, loss_mlx, loss_torch
from benchmarks.transformer import JAX_MEMORY
from benchmarks.workloads.projection import Projection, apart
from purestep._core import hardware

MEMORY, TIME, TOLERANCE = 0.35, 1.15, 1e-5
PLAIN, CHUNKS = "MLX plain", "purestep, chunks of "
SMALL = Projection(56, 32, 160, "float32")
SIZES = {  # chunks by what share of the tokens they are
    "gpu": (Projection(8192, 768, 50304, "bfloat16"), (8, 6, 4, 2, 1)),
    "cpu": (Projection(2048, 64, 8192, "float32"), (16, 8, 4)),
}


def contestants(
    problem: Projection, chunks: list[int], compiled: bool, mlx: dict[str, str]
) -> dict[str, Contestant]:
    """Return who competes; `mlx` are variables of the processes that use MLX."""

    def on_mlx(how: str | int) -> Contestant:
        return Contestant(loss_mlx.Loss, (problem, how, compiled), environment=mlx)

    found = {PLAIN: on_mlx(loss_mlx.FAST)} | {f"{CHUNKS}{chunk}": on_mlx(chunk) for chunk in chunks}
    return found | {
        "mlx.nn": on_mlx(loss_mlx.NN),
        "torch eager": Contestant(loss_torch.Loss, (problem, False), ("torch",)),
        "torch compiled": Contestant(loss_torch.Loss, (problem, True), ("torch",)),
        "JAX + optax": Contestant(loss_jax.Loss, (problem,), ("jax", "optax"), JAX_MEMORY, alone=True),
    }


def measure(options: argparse.Namespace, record: Record, limit: Limit) -> None:
    """Check, then race."""
    device = "gpu" if hardware.on_gpu() else "cpu"
    problem, shares = SIZES[device]
    given = {name: getattr(options, name) for name in Projection._fields if getattr(options, name)}
    problem = problem._replace(**given)
    chunks = options.chunks or sorted({-(-problem.tokens // share) for share in shares})
    steps = options.steps or (10 if device == "gpu" else 1)
    record.found |= {"problem": problem._asdict(), "steps": steps, "on": device, "failures": {}}
    mlx = harness.openblas() if device == "cpu" else {}
    with Worker("machine", Machine, environment=mlx) as machine:
        record.keep(facts=machine.call("facts"), contestants={}, limits=machine.call("limits", problem.dtype))
    harness.note("reference, float32")
    exact = (problem._replace(dtype="float32"), loss_mlx.FAST)
    with Worker("reference", loss_mlx.Loss, *exact, environment=mlx) as worker:
        wanted, small = worker.call("result"), worker.call("results", SMALL)
    who = contestants(problem, chunks, not options.uncompiled, mlx)
    with Team(who, options.only, limit=limit) as team:
        all_, record.found["failures"] = record.found["contestants"], team.failures
        for name, result in team.together("results", SMALL).items():
            if not (largest := max(apart(result, small))) <= TOLERANCE:
                team.drop(name, f"disagrees: {largest:.2g} from plain (tolerance {TOLERANCE})")
        for name in team.names:
            error, peak = team.call(name, "result"), team.call(name, "peak", 3)
            if name in team.names:
                all_[name] = {"error": max(apart(error, wanted)[1:]), "peak": peak}

        def after(seconds: dict[str, list[float]]) -> None:
            for name, values in seconds.items():
                all_[name]["seconds"] = values
            record.keep()

        harness.note("turns")
        team.race(steps, options.rounds, after)


def show(found: dict[str, Any]) -> str:
    """Write the results."""
    all_, rows = found["contestants"], []
    plain, limits = all_.get(PLAIN, {}), found["limits"]
    for name, each in all_.items():
        seconds, peak = each.get("seconds", []), each["peak"]
        rows.append(
            [
                name,
                "-" if peak is None else f"{peak / 1e6:.1f}",
                "-" if not (peak and plain.get("peak")) else f"{peak / plain['peak']:.2f}",
                harness.milliseconds(seconds),
                harness.ratio(seconds, plain.get("seconds", [])),
                f"{100 * _least(found) / Spread.of(seconds).median:.0f} %" if seconds else "-",
                f"{each['error']:.1e}",
            ]
        )
    made, met = transformer.rounds(all_), reached(found)
    verdict = "reached by " + ", ".join(met) if met else "missed" if made else "not measured"
    lines = [
        harness.facts_lines(found["facts"]),
        "",
        f"{Projection(**found['problem']).about()}; {made} rounds of {found['steps']}; products "
        f"{limits['matmul'] / 1e12:.3g} TFLOP/s, limit {1e3 * _least(found):.3g} ms",
        harness.table(["contestant", "peak MB", "of plain", "ms", "of plain", "of limit", "error"], rows),
        *(f"{name}: {reason}" for name, reason in found["failures"].items()),
        f"target: of plain, peak at most {MEMORY}"
        + (f" and time at most {TIME}" if found["on"] == "gpu" else "")
        + f": {verdict}",
    ]
    return "\n".join(lines)


def _least(found: dict[str, Any]) -> float:
    return Projection(**found["problem"]).flops() / found["limits"]["matmul"]


def reached(found: dict[str, Any]) -> list[str]:
    """Return the chunk sizes that meet the target."""
    all_ = found["contestants"]
    plain = all_.get(PLAIN, {})
    return [
        name
        for name, each in all_.items()
        if name.startswith(CHUNKS) and each.get("seconds") and plain.get("seconds")
        if each["peak"] <= MEMORY * plain["peak"]
        and (found["on"] == "cpu" or Spread.of_ratios(each["seconds"], plain["seconds"]).median <= TIME)
    ]


def missed(found: dict[str, Any]) -> list[str]:
    """Return the contestants that failed, and the target, if it was measured and missed."""
    measured = [name for name in harness.timed(found["contestants"]) if name.startswith(CHUNKS)]
    return transformer.missed(found) + ["target"] * bool(measured and not reached(found))


def panels(found: dict[str, Any]) -> list[Panel]:
    """Return the picture: time over that of the products, and peak memory."""
    all_ = found["contestants"]
    seconds, least = harness.timed(all_), 1e3 * _least(found)
    title = f"Loss and gradients: {Projection(**found['problem']).about()}"
    label = "three products at the measured rate"
    return [
        Panel(title, "ms, less is better", harness.bars(seconds, PLAIN), least, label),
        harness.sizes(
            "Peak memory over inputs and gradients", {name: all_[name]["peak"] for name in all_}, PLAIN
        ),
    ]


def _chunks(text: str) -> list[int]:
    chunks = [harness.positive(part) for part in text.split(",")]
    if len(set(chunks)) != len(chunks):
        raise argparse.ArgumentTypeError(f"must be different sizes, got {text}")
    return chunks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    for name in ("tokens", "features", "classes"):
        sizes = " or ".join(str(getattr(problem, name)) for problem, _ in SIZES.values())
        parser.add_argument(f"--{name}", type=harness.positive, help=f"({sizes}, on GPU or CPU)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="(bfloat16 or float32)")
    parser.add_argument(
        "--chunks",
        type=_chunks,
        metavar="N,N",
        help="chunk sizes (1/8, 1/4, 1/2 and all of the tokens, or 1/16, 1/8 and 1/4)",
    )
    parser.add_argument("--uncompiled", action="store_true", help="do not compile on MLX")
    parser.add_argument("--only", type=harness.names, default=[], metavar='"A;B"', help="contestants")
    parser.add_argument("--steps", type=harness.positive, help="evaluations a round (10 or 1)")
    parser.add_argument("--rounds", type=harness.positive, default=8, help="(8)")
