"""What this process computes on."""

import ctypes.util
import sys
from pathlib import Path

import mlx.core as mx


def on_gpu() -> bool:
    """Tell whether this thread computes on a GPU, unless a stream says otherwise."""
    return mx.default_device() == mx.Device(mx.gpu)


def device_name() -> str:
    """Return the name of the default device: a GPU's own, or `cpu`."""
    if not on_gpu():
        return "cpu"
    return str(mx.device_info().get("device_name", "gpu"))


def blas() -> str:
    """Return which library multiplies matrices on this CPU: `accelerate`, `openblas` or `bundled`.

    MLX's Linux wheel bundles the reference BLAS; an OpenBLAS that was loaded first takes its place.
    """
    if sys.platform == "darwin":
        return "accelerate"
    maps = Path("/proc/self/maps")
    loaded = maps.read_text().splitlines() if maps.exists() else []
    # By the file's name: the OpenBLAS inside a NumPy wheel exports other symbols and serves NumPy alone.
    return (
        "openblas" if any(line.rpartition("/")[2].startswith("libopenblas") for line in loaded) else "bundled"
    )


def find_openblas() -> str | None:
    """Return the name of an installed OpenBLAS library, to be loaded before MLX, if there is one."""
    return ctypes.util.find_library("openblas") if sys.platform == "linux" else None
