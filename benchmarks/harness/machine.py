"""What the numbers depend on beside the code: the machine, its measured rates, the versions."""

import datetime
import importlib.metadata
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.harness.text import note

_PEERS = ("numpy", "torch", "jax", "optax", "mlx-lm", "flax", "orbax-checkpoint")


def facts() -> dict[str, Any]:
    """Return the device, the processor, its load over the last minute, the versions and the day (UTC)."""
    import purestep as ps  # not above: a process of another framework must not load MLX
    from purestep._core import hardware

    found = {
        "device": hardware.device_name(),
        "blas": hardware.blas(),
        "processor": _processor(),
        "cores": cores(),
        "load": round(os.getloadavg()[0], 2),
        "mlx": importlib.metadata.version("mlx"),
        "purestep": ps.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    for package in _PEERS:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def openblas() -> dict[str, str]:
    """Return the variables of a process whose MLX multiplies with OpenBLAS; none if it is not installed."""
    from purestep._core import hardware

    library = hardware.find_openblas()
    if library is None:
        note("OpenBLAS is not installed: MLX uses the BLAS of its wheel")
        return {}
    return {"LD_PRELOAD": library}


def _processor() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


class Machine:
    """The facts and the measured rates of the machine, in a process of its own."""

    def facts(self) -> dict[str, Any]:
        """Return what the numbers depend on beside the code."""
        return facts()

    def copy(self) -> float:
        """Return the rate of MLX's copies in bytes per second, read and written."""
        from purestep import hardware

        return hardware.copy_rate().rate

    def memory(self) -> float:
        """Return the bytes of memory of the device, as MLX knows them."""
        import mlx.core as mx

        known: Any = mx.device_info()
        return float(known["total_memory"] if "total_memory" in known else known["memory_size"])

    def limits(self, dtype: str) -> dict[str, float | None]:
        """Return the measured copy rate (bytes/s) and product rate (FLOP/s), and the published peak."""
        import mlx.core as mx

        from purestep import hardware

        wanted = getattr(mx, dtype)
        try:
            published = hardware.peak_flops(wanted)
        except Exception:  # the table of chips does not know this one
            published = None
        return {
            "copy": hardware.copy_rate().rate,
            "matmul": hardware.matmul_rate(wanted).rate,
            "published": published,
        }
