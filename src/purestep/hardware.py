"""The machine: its device, memory, BLAS, settings, measured rates, and the published peaks of chips."""

from functools import partial

from purestep._core.hardware import blas
from purestep._hardware.chips import Chip
from purestep._hardware.device import device
from purestep._hardware.lookup import bandwidth, chips, gpu_cores, peak_flops
from purestep._hardware.machine import Device, Memory, memory
from purestep._hardware.rates import Rate, copy_rate, matmul_rate
from purestep._hardware.settings import configure_cuda

__all__ = [
    # This machine
    "device",
    "Device",
    "memory",
    "Memory",
    "blas",
    "gpu_cores",
    # Settings
    "configure_cuda",
    # Measured rates
    "matmul_rate",
    "copy_rate",
    "Rate",
    # Published peaks of chips
    "peak_flops",
    "bandwidth",
    "chips",
    "Chip",
]

__dir__ = partial(sorted, __all__)
