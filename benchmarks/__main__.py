"""`python -m benchmarks NAME [options]`."""

import argparse
import importlib
import signal
import sys

from benchmarks.harness import ContestantError

NAMES = {  # each is a module of this package, with add_arguments(parser) and run(options) -> exit code
    "step": "one training step: purestep against the same mathematics by hand",
    "transformer": "one training step of GPT-2: purestep, MLX by hand, torch, JAX",
    "optimizer": "clipping and AdamW alone: purestep, MLX by hand, mlx.optimizers, torch, optax",
    "cpu": "one training step of a small transformer on CPU cores: purestep, torch, JAX",
    "memory": "peak memory of a step in microbatches, and their gradients",
    "checkpoint": "saving and restoring a state, and saving in the background",
    "measures": "measurements within a step against the same step without: time and peak memory",
    "fit": "run and fit against bare loops around the same step",
    "linear_cross_entropy": "the loss of an output projection in chunks: peak memory and time against plain",
    "distributed": "one training step of GPT-2 in several processes: purestep, torch's DDP",
    "state": "bytes of optimizer state for each parameter, as a Markdown table",
}


def main() -> int:
    """Run one benchmark; return its exit code: 1 for contestants that disagree or a target missed."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name not in NAMES:
        print("usage: python -m benchmarks NAME [options]\n")
        print("\n".join(f"  {known:<22}{text}" for known, text in NAMES.items()))
        return 0 if name in ("-h", "--help") else 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers and their folders go too
    benchmark = importlib.import_module(f"benchmarks.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=benchmark.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    benchmark.add_arguments(parser)
    try:
        return benchmark.run(parser.parse_args(rest))
    except ContestantError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
