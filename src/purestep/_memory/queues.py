"""When the memory of finished kernels comes back: the host submits kernels before earlier ones have run."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import mlx.core as mx

from purestep._core import hardware, pacing
from purestep._graph.counting import flops_of
from purestep._graph.nodes import Operation
from purestep._hardware import lookup
from purestep._memory.layout import Buffer

_SUBMITTED = 10  # groups of kernels, MLX's MAX_ACTIVE_TASKS
_CPU_GROUP = 10  # kernels, MLX's DISPATCHES_PER_TASK


class Queue(Protocol):
    """Kernels that were submitted and have not run.

    Attributes:
        on_cpu: the device is a CPU.
    """

    on_cpu: bool

    def size(self, nbytes: int) -> int:
        """Return the memory that the allocator takes for some bytes."""
        ...

    def submit(self, operation: Operation, kept: list[Buffer], kernels: int, read: int) -> list[Buffer]:
        """Submit kernels that keep buffers until they have run; return the buffers of those that have.

        Args:
            operation: that of the kernels.
            kept: what they read, and their temporaries.
            kernels: how many; 0 for operations that only share memory.
            read: the elements that they read.
        """
        ...


class CpuQueue:
    """The queue of a CPU: one thread runs the kernels, up to ten groups of ten behind the host.

    A group may hold `begun` kernels when a step begins: those of what was evaluated before.
    """

    on_cpu = True

    def __init__(self, begun: int = 0) -> None:
        self._groups: deque[list[Buffer]] = deque()
        self._group: list[Buffer] = []
        self._count = begun

    def size(self, nbytes: int) -> int:
        return nbytes

    def submit(self, operation: Operation, kept: list[Buffer], kernels: int, read: int) -> list[Buffer]:
        # The release of the buffers is submitted as one more kernel.
        for dispatch in range(kernels + 1):
            if dispatch == kernels:
                self._group += kept
            self._count += 1
            if self._count == _CPU_GROUP:
                self._groups.append(self._group)
                self._group, self._count = [], 0
        done: list[Buffer] = []
        while len(self._groups) > _SUBMITTED:
            done += self._groups.popleft()
        return done


class Speeds(NamedTuple):
    """What decides how far the host is ahead of a GPU.

    Attributes:
        kernels: the most in a group, `MLX_MAX_OPS_PER_BUFFER`.
        elements: the most that a group reads, `MLX_MAX_MB_PER_BUFFER` times 2**20.
        bandwidth: bytes in a second.
        half: FLOP in a second, in bfloat16 and float16.
        single: in float32.
        waits: the host waits for groups with float32 products.
    """

    kernels: int
    elements: float
    bandwidth: float
    half: float
    single: float
    waits: bool


class GpuQueue:
    """The queue of a GPU. Groups of kernels run one after another; host and GPU have clocks.

    The times of the host are those seen with CUDA on an H200's host. The GPU reaches 75 % of its bandwidth,
    and 60 % of its rate in matrix products.
    """

    on_cpu = False
    VIEW, KERNEL, PRODUCT, LAUNCH = 1.5e-6, 11e-6, 12e-6, 2.5e-6  # seconds

    def __init__(self, speeds: Speeds) -> None:
        self._speeds = speeds
        self._groups: deque[tuple[float, list[Buffer]]] = deque()
        self._group: list[Buffer] = []
        self._count, self._read, self._work = 0, 0, 0.0
        self._host = self._device = 0.0
        self._single = False

    def size(self, nbytes: int) -> int:
        if nbytes <= 8:
            return 8
        if nbytes < 16384:
            return 1 << (nbytes - 1).bit_length()
        return -(-nbytes // 16384) * 16384

    def submit(self, operation: Operation, kept: list[Buffer], kernels: int, read: int) -> list[Buffer]:
        self._group += kept
        self._count += kernels
        self._host += self.VIEW if not kernels else self.KERNEL * kernels
        done: list[Buffer] = []
        if kernels:
            product = operation.name in ("Matmul", "AddMM")
            self._host += self.PRODUCT * product
            self._single |= product and operation.outputs[0].dtype == mx.float32
            self._work += self._seconds(operation)
            self._read += read
        full = self._count > self._speeds.kernels or self._read > self._speeds.elements
        if full or operation.name == pacing.END:
            self._device = max(self._device, self._host) + self._work
            self._groups.append((self._device, self._group))
            if self._single and self._speeds.waits:
                self._host = self._device
            self._group, self._count, self._read, self._work, self._single = [], 0, 0, 0.0, False
        while self._groups and (self._groups[0][0] <= self._host or len(self._groups) > _SUBMITTED):
            time, buffers = self._groups.popleft()
            self._host = max(self._host, time)
            done += buffers
        return done

    def _seconds(self, operation: Operation) -> float:
        output = operation.outputs[0]
        moved = sum(value.nbytes for value in (*operation.inputs, *operation.outputs))
        rate = self._speeds.half if output.dtype.size == 2 else self._speeds.single
        return self.LAUNCH + max(moved / (0.75 * self._speeds.bandwidth), flops_of(operation) / (0.6 * rate))


# Of a GPU whose peaks are not published: bytes and FLOP in a second.
_OTHER = {"bandwidth": 1e12, "half": 150e12, "single": 50e12}


def beginnings() -> list[Callable[[], Queue]]:
    """Return functions that make the queue of the default device, one for each way in which a step begins.

    On a CPU the group of kernels in which a step begins may hold some already. The groups of the step, and
    with them its peak, depend on how many; from step to step the number changes.
    """
    if not hardware.on_gpu():
        return [partial(CpuQueue, begun) for begun in range(0, _CPU_GROUP, 2)]
    cuda = hardware.on_cuda()
    found = {
        "bandwidth": lookup.bandwidth(),
        "half": lookup.peak_flops(mx.bfloat16),
        "single": lookup.peak_flops("tf32" if cuda else mx.float32),
    }
    rates = {kind: _OTHER[kind] if rate is None else rate for kind, rate in found.items()}
    kernels, elements = pacing.limits()
    return [partial(GpuQueue, Speeds(kernels, elements * 2.0**20, **rates, waits=cuda))]
