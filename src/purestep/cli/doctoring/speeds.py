"""Checks that measure: matrix products, copies, and the disk of the checkpoints."""

import errno
import os
import shutil
import tempfile
import time
from pathlib import Path

import mlx.core as mx

from purestep._core import hardware
from purestep._hardware.lookup import bandwidth, peak_flops
from purestep._hardware.machine import backend
from purestep._hardware.rates import copy_rate, matmul_rate
from purestep.cli.core import output
from purestep.cli.doctoring.finding import ADVICE, OK, WRONG, Finding, rate_text

_BLOCK = 2**23
_BLOCKS = 8
_SECONDS = 3.0
_SLOW_DISK = 50e6  # bytes per second: a checkpoint of 1 GB takes 20 s
_LOW = 0.25  # of the published peak; a device that others use, or that is too hot
_FULL = 2**30  # bytes
_SPACE, _PERMISSIONS = "Free space on the disk or raise the quota", "Change the permissions of the directory"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.ENOENT: "Create the directory",
    errno.ENOTDIR: "It is a file, or lies in one",
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.EROFS: "The file system can only be read: mount it for writing",
}


def products(seconds: float = 0.3) -> Finding:
    """Measure matrix products in float32, and in bfloat16 on a GPU."""
    dtypes = [mx.float32] if backend() == "cpu" else [mx.float32, mx.bfloat16]
    figures: dict[str, object] = {}
    parts, slow = [], False
    for dtype in dtypes:
        name = str(dtype).rpartition(".")[2]
        rate = matmul_rate(dtype, seconds=seconds).rate
        tf32 = dtype == mx.float32 and backend() == "cuda" and os.environ.get("MLX_ENABLE_TF32") != "0"
        peak = (peak_flops("tf32") if tf32 else None) or peak_flops(dtype)
        figures |= {f"{name}_flops": rate, f"{name}_peak_flops": peak}
        share = "" if peak is None else f", {rate / peak:.0%} of the published peak{' in TF32' * tf32}"
        parts.append(f"{rate_text(rate, 'FLOP/s')} in {name}{share}")
        slow = slow or (peak is not None and rate < _LOW * peak and dtype == mx.bfloat16)
    if backend() == "cpu":
        parts[-1] += f" with {hardware.blas()} BLAS"
    said = f"matrix products: {'; '.join(parts)}"
    if slow:
        remedy = "See whether another process uses the GPU, and whether it is hot or saves power"
        return Finding("matmul", ADVICE, said, remedy, figures)
    return Finding("matmul", OK, said, figures=figures)


def copies(seconds: float = 0.3) -> Finding:
    """Measure reading and writing memory."""
    rate, peak = copy_rate(seconds=seconds).rate, bandwidth()
    figures = {"bytes_per_second": rate, "peak_bytes_per_second": peak}
    share = "" if peak is None else f", {rate / peak:.0%} of the published bandwidth"
    said = f"copies: {rate_text(rate, 'B/s')} read and written{share}"
    if peak is not None and rate < _LOW * peak:
        return Finding("copy", ADVICE, said, "See whether another process uses the GPU", figures)
    return Finding("copy", OK, said, figures=figures)


def disk(directory: Path) -> Finding:
    """Write a temporary file into the directory of the checkpoints, and wait until it is on the disk."""
    try:
        written, seconds = _written(directory)
    except OSError as error:
        said = f"checkpoints cannot be written in {directory}: {error.strerror or error}"
        remedy = f"{_REMEDIES.get(error.errno or 0, 'Choose another one')}; --dir checks another directory"
        return Finding("disk", WRONG, said, remedy, {"directory": str(directory), "errno": error.errno})
    rate, free = written / seconds, shutil.disk_usage(directory).free
    figures = {"directory": str(directory), "bytes_per_second": rate, "free": free}
    said = f"{rate_text(rate, 'B/s')} written to {directory}, {output.size(free)} free"
    if free < _FULL:
        return Finding("disk", ADVICE, said, "Free space on the disk before a long training", figures)
    if rate < _SLOW_DISK:
        return Finding("disk", ADVICE, said, "Save checkpoints to a faster disk, or less often", figures)
    return Finding("disk", OK, said, figures=figures)


def _written(directory: Path) -> tuple[int, float]:
    """Write blocks for at most three seconds; return the bytes on the disk and the seconds."""
    handle, name = tempfile.mkstemp(prefix=".purestep-doctor-", dir=directory)
    try:
        block, written = os.urandom(_BLOCK), 0  # a file system may compress zeros
        began = time.perf_counter()
        for _ in range(_BLOCKS):
            rest = memoryview(block)
            while rest:
                count = os.write(handle, rest)
                written, rest = written + count, rest[count:]
            if time.perf_counter() - began > _SECONDS:
                break
        os.fsync(handle)
        return written, max(time.perf_counter() - began, 1e-9)
    finally:
        os.close(handle)
        os.unlink(name)
