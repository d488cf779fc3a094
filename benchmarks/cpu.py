"""One training step of a small transformer on CPU cores: purestep against MLX by hand, torch and JAX.

4 layers, width 128, 8 x 128 tokens, vocabulary 8192, float32. It is the benchmark `transformer` with its
contestants, checks and turns. MLX multiplies with OpenBLAS where that is installed: its Linux wheel
bundles a reference BLAS that is 40 times as slow.
"""

import argparse

from benchmarks import harness, transformer
from benchmarks.harness import Contestant, Limit, Record
from benchmarks.workloads import gpt


def contestants(shape: gpt.Shape, microbatches: int, mlx: dict[str, str]) -> dict[str, Contestant]:
    """Return who competes, all on the CPU."""
    hidden = {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    found = transformer.contestants(shape, microbatches, mlx)
    return {
        name: each if each.environment is mlx else each._replace(environment=hidden)
        for name, each in found.items()
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    transformer.add_common(parser, steps=4, rounds=8)


def measure(options: argparse.Namespace, record: Record, limit: Limit) -> None:
    """Measure the step."""
    environment = {"BENCHMARK_DEVICE": "cpu"} | harness.openblas()
    transformer.compete(gpt.SIZES["cpu"], options, record, limit, who=contestants, environment=environment)


show, panels, missed = transformer.show, transformer.panels, transformer.missed
