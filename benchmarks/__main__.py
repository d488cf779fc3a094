"""`python -m benchmarks NAME [options]`."""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import ContestantError, Limit, Record, StoppedError, records

NAMES = {  # each is a module of this package; `benchmarks/__init__.py` says what it defines
    "step": "one training step: purestep against the same mathematics by hand",
    "transformer": "one training step of GPT-2: purestep, MLX by hand, torch, JAX",
    "optimizer": "clipping and AdamW alone: purestep, MLX by hand, mlx.optimizers, torch, optax",
    "cpu": "one training step of a small transformer on CPU cores: purestep, torch, JAX",
    "memory": "peak memory of a step in microbatches, and their gradients",
    "checkpoint": "saving and restoring a state, and saving in the background",
    "measures": "measurements within a step against the same step without: time and peak memory",
    "fit": "run and fit against bare loops around the same step",
    "loss": "the loss of an output projection, in chunks and plain: peak memory and time",
    "finetune": "one step of tuning a llama's adapters: purestep and mlx-lm's trainer",
    "distributed": "one training step of GPT-2 in several processes: purestep, torch's DDP",
    "population": "64 small MLPs as a population against one after the other",
    "ranks": "checkpoints, stopped processes and a large model in several processes",
    "scaling": "models of 1B to 70B parameters on 8 to 512 GPUs, computed from the records",
    "state": "bytes of optimizer state for each parameter, as a Markdown table",
}
SHOW = "show"
LIMIT = 250.0


def usage() -> str:
    """Return the help of the command."""
    rows = NAMES | {SHOW: "the table and the picture of records that --save wrote"}
    lines = [f"  {name:<14}{text}" for name, text in rows.items()]
    return "\n".join(["usage: python -m benchmarks NAME [options]", "", *lines])


def main(arguments: list[str]) -> int:
    """Run one benchmark; return its exit code.

    It is 1 if contestants fail, disagree or miss a target, and 143 after SIGTERM.
    """
    begun = time.monotonic()
    name, *rest = arguments or ["--help"]
    if name == SHOW:
        return show(rest)
    if name not in NAMES:
        print(usage())
        return 0 if name in ("-h", "--help") else 2
    benchmark = importlib.import_module(f"benchmarks.{name}")
    options = parser(name, benchmark).parse_args(rest)
    record = Record(name, options, records.RESULTS if options.save else None)
    try:
        with Limit(options.limit or None, begun).enforced() as limit:
            benchmark.measure(options, record, limit)
    except StoppedError as reason:
        record.keep(stopped=str(reason))
    except ContestantError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    if "facts" in record.found:
        record.found["facts"]["load after"] = round(os.getloadavg()[0], 2)
    found = record.plain()
    if "facts" not in found:
        print(f"{name}: stopped before anything was measured: {found['stopped']}", file=sys.stderr)
        return 1
    text = records.show(benchmark, found)
    print(json.dumps(found, indent=1) if options.json else text, flush=True)
    record.save(text, benchmark.panels(found))
    return 143 if found.get("stopped") == "terminated" else int(bool(benchmark.missed(found)))


def parser(name: str, benchmark: object) -> argparse.ArgumentParser:
    """Return the parser of a benchmark: its own options and those of all."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=benchmark.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    benchmark.add_arguments(made)  # type: ignore[attr-defined]
    shared = made.add_argument_group("shared by all benchmarks")
    shared.add_argument(
        "--limit",
        type=harness.seconds,
        default=LIMIT,
        metavar="SECONDS",
        help=f"end within this time, with what was measured until then; 0 for none ({LIMIT:g})",
    )
    shared.add_argument("--json", action="store_true", help="print everything measured as JSON")
    shared.add_argument(
        "--save", action="store_true", help="write JSON, table and picture to benchmarks/results"
    )
    return made


def show(arguments: list[str]) -> int:
    """Print the tables of records and draw their pictures beside them."""
    made = argparse.ArgumentParser(prog="python -m benchmarks show", description=show.__doc__)
    made.add_argument("files", nargs="*", type=Path, metavar="FILE", help="JSON (all of benchmarks/results)")
    files = made.parse_args(arguments).files or sorted(records.RESULTS.glob("*.json"))
    for number, path in enumerate(files):
        try:
            found = records.load(path)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        benchmark = importlib.import_module(f"benchmarks.{found['benchmark']}")
        print("\n" * bool(number) + records.show(benchmark, found), flush=True)
        records.draw(found, benchmark.panels(found), path.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
