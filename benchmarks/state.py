"""Bytes of optimizer state for each parameter: the table in README, as Markdown."""

import argparse
import json

import mlx.core as mx

from purestep import optimizers
from purestep.transforms import state_memory

# One block of a transformer of width 512, its embedding, biases and norms among it.
SHAPES = {
    "embedding": (4096, 512),
    "qkv": (1536, 512),
    "out": (512, 512),
    "up": (2048, 512),
    "down": (512, 2048),
    "up_bias": (2048,),
    "norm": (512,),
}
NEEDS_A_KEY = {"noisy_sgd"}
NO_RATE = {"polyak_sgd"}
NAMES = sorted(name for name in optimizers.__all__ if name != "mup")


def table() -> dict[str, float]:
    """Return the bytes a parameter of every optimizer with its default settings; sgd with momentum."""
    params = {name: mx.zeros(shape, mx.bfloat16) for name, shape in SHAPES.items()}
    found = {}
    for name in NAMES:
        make = getattr(optimizers, name)
        options = {"key": 0} if name in NEEDS_A_KEY else {"momentum": 0.9} if name == "sgd" else {}
        rate = () if name in NO_RATE else (1e-3,)
        if name == "optimistic_adam":
            options = {"optimism": 1e-3}
        found[name] = sum(state_memory(make(*rate, **options), params).values())
    return found


def markdown(found: dict[str, float]) -> str:
    """Return one line for each number of bytes, rounded to a tenth."""
    by_bytes: dict[str, list[str]] = {}
    for name, size in sorted(found.items(), key=lambda item: (round(item[1], 1), item[0])):
        by_bytes.setdefault(f"{size:.1f}", []).append(f"`{name}`")
    rows = [f"| {size} | {', '.join(names)} |" for size, names in by_bytes.items()]
    return "\n".join(["| bytes a parameter | optimizers |", "|---|---|", *rows])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print the bytes by name as JSON")


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    found = table()
    print(json.dumps(found) if options.json else markdown(found))
    return 0
