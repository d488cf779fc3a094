"""The device and the BLAS of this process."""

import ctypes.util
import sys
from pathlib import Path

import mlx.core as mx


def on_gpu() -> bool:
    """Tell whether the default device of this thread is a GPU."""
    return mx.default_device() == mx.Device(mx.gpu)


def on_cuda() -> bool:
    """Tell whether the default device of this thread is an NVIDIA GPU."""
    return on_gpu() and not mx.metal.is_available()


def device_name() -> str:
    """Return the name of the default device: that of the GPU, or `cpu`."""
    if not on_gpu():
        return "cpu"
    return str(mx.device_info().get("device_name", "gpu"))


def blas() -> str:
    """Return the library that multiplies matrices on this CPU: `accelerate`, `openblas` or `bundled`.

    MLX's Linux wheel bundles the reference BLAS. An OpenBLAS that was loaded before MLX replaces it.

    >>> blas() in ("accelerate", "openblas", "bundled")
    True
    """
    if sys.platform == "darwin":
        return "accelerate"
    maps = Path("/proc/self/maps")
    loaded = maps.read_text().splitlines() if maps.exists() else []
    # The file name decides: a NumPy wheel's OpenBLAS has another name and other symbols, and only NumPy uses
    # it.
    return (
        "openblas" if any(line.rpartition("/")[2].startswith("libopenblas") for line in loaded) else "bundled"
    )


def find_openblas() -> str | None:
    """Return the name of an installed OpenBLAS library, or `None`. MLX uses it only if it is loaded first."""
    return ctypes.util.find_library("openblas") if sys.platform == "linux" else None
