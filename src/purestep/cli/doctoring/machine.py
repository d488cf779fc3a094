"""Checks of what there is: versions, device, memory, BLAS, distributed backends, CUDA settings."""

import contextlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata

import mlx.core as mx

from purestep import __version__
from purestep._core import hardware
from purestep._hardware.device import device
from purestep._hardware.machine import backend, memory
from purestep._hardware.rates import matmul_rate
from purestep.cli.core import output
from purestep.cli.doctoring.finding import ADVICE, OK, WRONG, Finding, rate_text

_LEAST_MLX = (0, 32, 4)
_BACKENDS = ("mlx-cpu", "mlx-metal", "mlx-cuda-12", "mlx-cuda-13")
_EXTRAS = {
    "rich": "cli",
    "matplotlib": "demo",
    "xxhash": "fast",
    "numpy": "test",
    "mlx-lm": "test",
}
_DISTRIBUTED = ("ring", "mpi", "nccl", "jaccl")
_THRASHING, _CACHE = "MLX_ENABLE_CACHE_THRASHING_CHECK", "MLX_CUDA_GRAPH_CACHE_SIZE"


def versions() -> Finding:
    """Check that the parts of MLX have one version, and list what is installed."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found |= {"purestep": __version__, "mlx": metadata.version("mlx")}
    parts = {name: version for name in _BACKENDS if (version := _version(name))}
    extras = {name: _version(name) for name in _EXTRAS}
    figures = {**found, **parts, "extras": extras}
    there = ", ".join(f"{name} {version}" for name, version in [*found.items(), *parts.items()])
    other = {name: version for name, version in parts.items() if version != found["mlx"]}
    if other:
        wrong = ", ".join(f"{name} {version}" for name, version in other.items())
        remedy = f"Install both in one command: pip install -U mlx=={found['mlx']} " + " ".join(
            f"{name}=={found['mlx']}" for name in other
        )
        return Finding("versions", WRONG, f"mlx {found['mlx']} does not match {wrong}", remedy, figures)
    if _numbers(found["mlx"]) < _LEAST_MLX:
        least = ".".join(map(str, _LEAST_MLX))
        return Finding(
            "versions", WRONG, f"{there}; purestep needs mlx {least}", "pip install -U mlx", figures
        )
    missing = [f"{name} (purestep[{extra}])" for name, extra in _EXTRAS.items() if extras[name] is None]
    said = f"{there}; optional, not installed: {', '.join(missing)}" if missing else there
    return Finding("versions", OK, said, figures=figures)


def chip() -> Finding:
    """Name the default device."""
    found = device()
    cores = "" if found.cores is None else f", {found.cores} GPU cores"
    said = f"{found.name} ({found.kind}, {found.backend}{cores})"
    if found.kind == "cpu" and mx.is_available(mx.Device(mx.gpu)):
        remedy = "mx.set_default_device(mx.gpu) trains on the GPU"
        return Finding("device", ADVICE, f"{said}, although there is a GPU", remedy, found._asdict())
    return Finding("device", OK, said, figures=found._asdict())


def room() -> Finding:
    """Describe the memory, and the wired limit of a Mac."""
    found = memory()
    figures = {**found._asdict(), "wired_limit": _wired_limit()}
    parts = ["the total is unknown" if found.total is None else f"{output.size(found.total)} in total"]
    if found.limit is not None:
        kind = "Metal recommends at most" if backend() == "metal" else "the container allows"
        parts.append(f"{kind} {output.size(found.limit)}")
    if figures["wired_limit"]:
        parts.append(f"the system wires at most {output.size(figures['wired_limit'])}")
    free = mx.device_info().get("free_memory")
    if isinstance(free, int) and found.total:
        figures["free"] = free
        parts.append(f"{output.size(free)} free")
        if free < found.total / 4:
            remedy = "See which other process holds the memory of the GPU, for example with nvidia-smi"
            return Finding("memory", ADVICE, "; ".join(parts), remedy, figures)
    if found.limit is not None and found.limit < 2**30:
        remedy = "Give the container more memory, or train a small model"
        return Finding("memory", ADVICE, "; ".join(parts), remedy, figures)
    return Finding("memory", OK, "; ".join(parts), figures=figures)


def blas() -> Finding:
    """Name the BLAS of the CPU, which decides how fast it multiplies matrices."""
    name, installed = hardware.blas(), hardware.find_openblas()
    with mx.stream(mx.cpu):
        rate = matmul_rate(seconds=0.1).rate
    figures = {"blas": name, "openblas_installed": installed, "float32_flops": rate}
    if name != "bundled":
        said = f"{name} multiplies matrices on the CPU: {rate_text(rate, 'FLOP/s')}"
        return Finding("blas", OK, said, figures=figures)
    said = f"MLX's bundled BLAS multiplies matrices on the CPU: {rate_text(rate, 'FLOP/s')}"
    if backend() != "cpu":
        return Finding("blas", OK, f"{said}. The default device is the GPU", figures=figures)
    preload = f"LD_PRELOAD={installed or 'libopenblas.so.0'}"
    fast = "OpenBLAS is 20 to 40 times as fast"
    remedy = f"{fast}: start Python with {preload}. The commands train and demo do so by themselves"
    if installed is None:
        remedy = (
            f"{fast}: install it (apt-get install libopenblas0-pthread on Debian and Ubuntu), then start "
            f"Python with {preload}"
        )
    return Finding("blas", ADVICE, said, remedy, figures)


def distributed() -> Finding:
    """List the distributed backends that this MLX has."""
    found = {}
    for name in _DISTRIBUTED:
        try:
            found[name] = bool(mx.distributed.is_available(name))
        except (RuntimeError, ValueError, TypeError):  # this MLX does not know it
            found[name] = False
    there = [name for name, has in found.items() if has]
    absent = [name for name, has in found.items() if not has]
    said = f"available: {', '.join(there) or 'no backend'}; not available: {', '.join(absent) or 'none'}"
    return Finding("distributed", OK, said, figures=found)


def graphs() -> Finding | None:
    """Check the settings of CUDA graphs for batches of many shapes; `None` without CUDA."""
    if backend() != "cuda":
        return None
    size, check = os.environ.get(_CACHE), os.environ.get(_THRASHING)
    figures = {_CACHE: size, _THRASHING: check}
    if check is not None and check.strip() == "0":
        return Finding("cuda graphs", OK, f"{_THRASHING}=0: batches of many shapes are safe", figures=figures)
    entries = int(size) if size is not None and size.strip().isdigit() else 400
    said = (
        f"MLX ends the process after about {2 * entries} graphs that were not in its cache "
        f"({_CACHE}={size or '400, the default'})"
    )
    remedy = "Call ps.hardware.configure_cuda() first in your program, if your batches have many shapes"
    return Finding("cuda graphs", ADVICE, said, remedy, figures)


def _wired_limit() -> int | None:
    """Return the limit in bytes that the user set for wired memory on a Mac; `None` elsewhere and unset."""
    if sys.platform != "darwin":
        return None
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        said = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return int(said.stdout) * 2**20 or None
    return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
