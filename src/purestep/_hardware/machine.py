"""The default device and its memory."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import hardware

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


class Device(NamedTuple):
    """The default device.

    Attributes:
        kind: `cpu` or `gpu`.
        backend: `cpu`, `metal` or `cuda`.
        name: the name of the chip, as MLX reports it.
        architecture: the architecture, as MLX reports it; empty if it reports none.
        cores: the number of GPU cores of a Mac whose default device is the GPU, otherwise `None`.
    """

    kind: str
    backend: str
    name: str
    architecture: str
    cores: int | None


class Memory(NamedTuple):
    """Memory in bytes. The values that MLX and the system do not report are `None`.

    Attributes:
        total: of the machine, or of the NVIDIA GPU.
        limit: the most that this process should use: Metal's recommended working set, which is also the
            largest wired memory, or the limit of the container or job on Linux.
        active: held by arrays now.
        peak: the most that arrays held at once, since the start or `mx.reset_peak_memory()`.
        cache: freed by arrays and kept by MLX for the next ones.
    """

    total: int | None
    limit: int | None
    active: int
    peak: int
    cache: int


def backend() -> str:
    """Return `metal` or `cuda` if the default device is such a GPU, otherwise `cpu`."""
    if not hardware.on_gpu():
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def memory() -> Memory:
    """Return the memory of the default device and what MLX holds of it.

    It does not wait for the device. Arrays that are not evaluated yet hold no memory.

    Returns:
        Bytes by name: `total`, `limit`, `active`, `peak`, `cache`.

    >>> import mlx.core as mx
    >>> mx.eval(held := mx.zeros((1024, 256)))
    >>> found = memory()
    >>> found.active >= held.nbytes, found.peak >= found.active
    (True, True)
    """
    info = _info()
    total = info.get("memory_size") or info.get("total_memory")
    limit = info.get("max_recommended_working_set_size")
    if backend() == "cpu":
        total, limit = total or _physical(), _container()
        if total is not None and limit is not None and limit >= total:
            limit = None
    return Memory(
        None if not total else int(total),
        None if not limit else int(limit),
        mx.get_active_memory(),
        mx.get_peak_memory(),
        mx.get_cache_memory(),
    )


def _info() -> dict[str, Any]:
    return dict(mx.device_info())


def _physical() -> int | None:
    if sys.platform == "win32":
        return None
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _container() -> int | None:
    """Return the limit of the container in bytes, or `None`: the least of its control groups."""
    found = []
    for path in _limits():
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            found.append(int(path.read_text()))
    return min(found, default=None)


def _limits() -> list[Path]:
    """Return the files with the limits of the control groups of this process, from the outermost on.

    A container often sees its own group as the root; a job of a scheduler is in a group below it.
    """
    unified, memory = "/", "/"
    with contextlib.suppress(OSError, ValueError):
        for line in _OWN.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                unified = path
            elif "memory" in controllers.split(","):
                memory = path
    return [
        *_files(_GROUPS, unified, "memory.max"),
        *_files(_GROUPS / "memory", memory, "memory.limit_in_bytes"),
    ]


def _files(root: Path, path: str, name: str) -> list[Path]:
    below = [root]
    for segment in path.split("/"):
        if segment and segment != "..":
            below.append(below[-1] / segment)
    return [place / name for place in below]
