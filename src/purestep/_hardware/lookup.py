"""Published peaks by the name of a device."""

import re
import subprocess
import sys

import mlx.core as mx

from purestep._core import checks, tree
from purestep._hardware import apple, nvidia
from purestep._hardware.chips import DTYPES, Chip


def chips() -> tuple[Chip, ...]:
    """Return the table of chips: Apple's from M1 on, and NVIDIA's from V100 on.

    Apple chips that are sold with several numbers of GPU cores have a row for each number.

    Returns:
        The rows. A figure that nobody published is `None`.

    >>> [chip.bandwidth for chip in chips() if "NVIDIA H200" in chip.names]
    [4800000000000.0]
    """
    return apple.CHIPS + nvidia.CHIPS


def peak_flops(
    dtype: mx.Dtype | str, device_name: str | None = None, *, cores: int | None = None
) -> float | None:
    """Return the published peak of matrix products on a chip, or `None` if it is not known.

    The figures are dense: without structured sparsity. MLX rounds the inputs of float32 products to TF32 on
    NVIDIA GPUs unless `MLX_ENABLE_TF32=0` is set, so `"tf32"` is the peak of those products there.

    Args:
        dtype: `mx.float32`, `mx.float16`, `mx.bfloat16` or `mx.int8`, or its name; or `"tf32"`.
        device_name: what `mx.device_info()["device_name"]` says on the chip, such as `"Apple M2 Max"` or
            `"NVIDIA H100 80GB HBM3"`. `None`: the default device. A CPU has no known peak.
        cores: the number of GPU cores of an Apple chip. `None`: that of this machine if `device_name` is
            `None`. A chip with several rows has a peak only if the number is known or all rows agree.

    Returns:
        FLOP/s, a multiply-add as two; operations per second for int8. `None` if the chip is not in the
        table, if its peak is not published, or if the number of cores decides and is not known.

    Raises:
        ValueError: if `dtype` is another one, or `cores` is not positive.
        TypeError: for arguments of other types.

    >>> peak_flops(mx.bfloat16, "NVIDIA A100-SXM4-80GB") / 1e12
    312.0
    >>> peak_flops("float32", "Apple M1 Max") is None  # it has 24 or 32 cores
    True
    >>> round(peak_flops("float32", "Apple M1 Max", cores=32) / 1e12, 1)
    10.6
    """
    caller = "peak_flops"
    if not isinstance(dtype, (mx.Dtype, str)):
        raise TypeError(f"{caller}: dtype must be an mx.Dtype or a name, got {type(dtype).__name__}")
    name = dtype if isinstance(dtype, str) else tree.dtype_name(dtype)
    if name not in DTYPES:
        raise checks.error(caller, f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return _agreed(name, _rows(caller, device_name, cores))


def bandwidth(device_name: str | None = None, *, cores: int | None = None) -> float | None:
    """Return the published memory bandwidth of a chip, or `None` if it is not known.

    Args:
        device_name: what `mx.device_info()["device_name"]` says on the chip; `None`: the default device.
        cores: the number of GPU cores of an Apple chip; `None`: that of this machine if `device_name` is
            `None`.

    Returns:
        Bytes per second. `None` if the chip is not in the table, or if the number of cores decides and is
        not known.

    Raises:
        ValueError: if `cores` is not positive.
        TypeError: for arguments of other types.

    >>> bandwidth("NVIDIA H100 80GB HBM3") / 1e12
    3.35
    >>> bandwidth("Apple M3 Max") is None, bandwidth("Apple M3 Max", cores=30) / 1e9
    (True, 300.0)
    """
    return _agreed("bandwidth", _rows("bandwidth", device_name, cores))


def gpu_cores() -> int | None:
    """Return the number of GPU cores of this Mac; `None` on other machines, and if macOS does not say.

    MLX does not report it. It is read by `ioreg`, which takes some milliseconds.

    >>> gpu_cores() is None or gpu_cores() > 0
    True
    """
    if sys.platform != "darwin":
        return None
    command = ["/usr/sbin/ioreg", "-rc", "AGXAccelerator", "-d", "1"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    found = re.search(r'"gpu-core-count"\s*=\s*(\d+)', said)
    return int(found[1]) if found and int(found[1]) > 0 else None


def _rows(caller: str, device_name: str | None, cores: int | None) -> list[Chip]:
    if cores is not None:
        cores = checks.integer(caller, "cores", cores, least=1)
    if device_name is None:
        if mx.default_device().type != mx.DeviceType.gpu:
            return []  # the same name stands for the CPU and the GPU of an Apple chip
        device_name = str(mx.device_info().get("device_name", ""))
        if cores is None and device_name.startswith("Apple"):
            cores = gpu_cores()
    elif not isinstance(device_name, str):
        raise TypeError(f"{caller}: device_name must be a string, got {type(device_name).__name__}")
    wanted = _plain(device_name)
    rows = [chip for chip in chips() if wanted in map(_plain, chip.names)]
    return rows if cores is None else [chip for chip in rows if chip.cores in (None, cores)]


def _plain(name: str) -> str:
    """Return a name in lower case and without the maker, which older drivers leave out."""
    return " ".join(name.casefold().split()).removeprefix("nvidia ")


def _agreed(figure: str, rows: list[Chip]) -> float | None:
    values = {getattr(chip, figure) for chip in rows}
    return values.pop() if len(values) == 1 else None
