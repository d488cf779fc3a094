"""One step of fine-tuning a llama by low-rank adapters: purestep against mlx-lm's own trainer.

The model is mlx-lm's `llama` with mlx-lm's LoRA layers and random weights, the same in each process; Adam
trains the adapters alone. Before any time counts, the losses of the first 5 steps must agree. mlx-lm's time
is the one that its trainer reports, in the second half of a call. The limit is the time of the step's
products at the rate measured here. On a CPU, MLX multiplies with OpenBLAS where that is installed.
"""

import argparse
from typing import Any

from benchmarks import harness, transformer
from benchmarks.harness import Contestant, Limit, Machine, Panel, Record, Spread, Team, Worker
from benchmarks.workloads import tuning
from benchmarks.workloads.tuning import Llama
from purestep._core import hardware

CHECKED, TOLERANCE = 5, {"float32": 1e-4, "bfloat16": 0.005}
PURESTEP, TRAINER = "purestep", "mlx-lm"
SIZES = {
    "small": Llama(4, 256, 688, 4, 2, 4096, 128, 4, "float32"),
    "1b": Llama(16, 2048, 8192, 32, 8, 32000, 1024, 4, "bfloat16"),
}


def contestants(shape: Llama, environment: dict[str, str]) -> dict[str, Contestant]:
    """Return who competes; `environment` are variables of their processes."""
    needs = ("mlx_lm",)
    return {
        PURESTEP: Contestant(tuning.Purestep, (shape, False), needs, environment),
        "purestep, packed": Contestant(tuning.Purestep, (shape, True), needs, environment),
        TRAINER: Contestant(tuning.MlxLm, (shape,), needs, environment),
    }


def measure(options: argparse.Namespace, record: Record, limit: Limit) -> None:
    """Compare the first losses, then race."""
    shape = SIZES[options.size]
    record.found |= {"label": f"finetune-{options.size}", "shape": shape._asdict(), "failures": {}}
    environment = {} if hardware.on_gpu() else harness.openblas()
    with Worker("machine", Machine, environment=environment) as machine:
        record.keep(facts=machine.call("facts"), contestants={}, limits=machine.call("limits", shape.dtype))
    all_ = record.found["contestants"]
    with Team(contestants(shape, environment), options.only, limit=limit) as team:
        record.found["failures"] = team.failures
        harness.note("first steps")
        made = team.together("first", CHECKED)
        want = made.get(TRAINER) or next(iter(made.values()), {})
        for name, result in made.items():
            pairs = zip(result["metrics"], want["metrics"], strict=True)
            apart = max(abs(a - b) / abs(b) for (a,), (b,) in pairs)
            if not apart <= TOLERANCE[shape.dtype]:
                team.drop(name, f"disagrees: loss by {apart:.2g} (tolerance {TOLERANCE[shape.dtype]})")
                continue
            peak = team.call(name, "peak", 4)
            if name in team.names:
                first, losses = result["seconds"], [loss for (loss,) in result["metrics"]]
                all_[name] = {"apart": apart, "first": first, "losses": losses, "peak": peak}

        def after(seconds: dict[str, list[float]]) -> None:
            for name, values in seconds.items():
                all_[name]["seconds"] = values
            record.keep()

        harness.note("turns")
        team.race(options.steps, options.rounds, after)


def show(found: dict[str, Any]) -> str:
    """Write the table."""
    shape, all_, rows = Llama(**found["shape"]), found["contestants"], []
    base = all_.get(PURESTEP, {}).get("seconds", [])
    for name, each in all_.items():
        seconds, peak = each.get("seconds", []), each["peak"]
        rows.append(
            [
                name,
                harness.milliseconds(seconds),
                harness.ratio(base, seconds),
                f"{100 * _least(found) / Spread.of(seconds).median:.0f} %" if seconds else "-",
                "-" if peak is None else f"{peak / 1e9:.3f}",
                f"{each['apart']:.1g}",
                f"{each['first']:.1f}",
            ]
        )
    head = ["contestant", "ms/step (quartiles)", "purestep / it", "of limit", "peak GB", "apart", "first s"]
    lines = [
        harness.facts_lines(found["facts"]),
        f"{shape.about()}; {transformer.rounds(all_)} rounds of {found['options']['steps']} steps",
        f"products {found['limits']['matmul'] / 1e12:.3g} TFLOP/s, limit {1e3 * _least(found):.3g} ms",
        "",
        harness.table(head, rows),
        *(f"{name}: {reason}" for name, reason in found["failures"].items()),
    ]
    return "\n".join(lines)


def _least(found: dict[str, Any]) -> float:
    return Llama(**found["shape"]).flops() / found["limits"]["matmul"]


def panels(found: dict[str, Any]) -> list[Panel]:
    """Return the picture: time over that of the products, and peak memory."""
    all_, least = found["contestants"], 1e3 * _least(found)
    bars = harness.bars(harness.timed(all_), PURESTEP)
    about = Llama(**found["shape"]).about()
    return [
        Panel(f"A step: {about}", "ms, less is better", bars, least, transformer.LEAST),
        harness.sizes("Peak memory", {name: each["peak"] for name, each in all_.items()}, PURESTEP),
    ]


missed = transformer.missed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--size", choices=SIZES, default="small", help="the model (small); 1b for a GPU")
    transformer.add_common(parser, steps=5, rounds=8)
