"""One training step of a small transformer on CPU cores: purestep against MLX by hand, torch and JAX.

4 layers, width 128, 8 x 128 tokens, vocabulary 8192, float32. It is the benchmark `transformer` with its
contestants, checks and turns. MLX multiplies with OpenBLAS where that is installed: its Linux wheel
bundles a reference BLAS that is 40 times as slow.
"""

import argparse

from benchmarks import gpt, harness, transformer
from benchmarks.team import Contestant
from purestep._core import hardware


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


def run(options: argparse.Namespace) -> int:
    """Measure the step."""
    library = hardware.find_openblas()
    if library is None:
        harness.note("OpenBLAS is not installed: MLX uses the BLAS of its wheel")
    environment = {"BENCHMARK_DEVICE": "cpu"} | ({"LD_PRELOAD": library} if library else {})
    found = transformer.measure(
        gpt.SIZES["cpu"], microbatches=1, steps=options.steps, rounds=options.rounds,
        only=transformer.chosen(options.only), who=contestants, environment=environment,
    )  # fmt: skip
    return transformer.report("cpu", found, transformer.show(found), options)
