"""Bytes of optimizer state for each parameter: the table in README, as Markdown."""

import argparse
from typing import Any

import mlx.core as mx

from benchmarks import harness
from benchmarks.harness import Bar, Limit, Panel, Record, Spread
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
    """Declare no option."""


def measure(options: argparse.Namespace, record: Record, limit: Limit) -> None:
    """Compute the table."""
    record.keep(facts=harness.facts(), state=table())


def show(found: dict[str, Any]) -> str:
    """Write the table."""
    return markdown(found["state"])


def panels(found: dict[str, Any]) -> list[Panel]:
    """Return the picture."""
    bars = [Bar(name, Spread.of([size])) for name, size in sorted(found["state"].items(), key=lambda x: x[1])]
    return [Panel("Optimizer state", "bytes a parameter, less is better", bars)]


def missed(found: dict[str, Any]) -> list[str]:
    """Return an empty list: nothing is compared."""
    return []
