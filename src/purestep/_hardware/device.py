"""`device`: the chip that the default device is."""

from purestep._core import hardware
from purestep._hardware import machine
from purestep._hardware.lookup import gpu_cores
from purestep._hardware.machine import Device


def device() -> Device:
    """Describe the default device.

    Returns:
        `kind`, `backend`, `name`, `architecture` and, on a Mac, the number of GPU `cores`.

    >>> device().kind in ("cpu", "gpu")
    True
    """
    info = machine._info()
    kind = "gpu" if hardware.on_gpu() else "cpu"
    found = machine.backend()
    return Device(
        kind,
        found,
        str(info.get("device_name", "")) or kind,
        str(info.get("architecture", "")),
        gpu_cores() if found == "metal" else None,
    )
