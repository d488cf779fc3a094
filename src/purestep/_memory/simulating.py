"""Run a graph without computing it, and follow the memory that it takes.

MLX gives a kernel its memory when it is submitted. An array is freed when nothing reads it any more and all
kernels that read it have run; a kernel may write its result into an input that nothing else keeps.
"""

from collections.abc import Iterable

from purestep._graph.nodes import Graph, Operation, Value
from purestep._graph.scheduling import schedule
from purestep._memory import kernels
from purestep._memory.layout import Buffer, Layout, plain
from purestep._memory.queues import Queue


class Simulation:
    """The memory of one evaluation of a graph.

    Attributes:
        layouts: of the arrays that are there now.
        on_cpu: the device is a CPU.
        active: bytes in use.
        peak: the most that was in use.
        at_peak: the operation that took the peak; `None` before the first.
    """

    def __init__(self, graph: Graph, queue: Queue, held: Iterable[Value]):
        """Place the inputs and constants; `held` are inputs that the caller keeps."""
        self.layouts: dict[Value, Layout] = {}
        self.active = self.peak = self._allocations = self._peak_allocation = 0
        self.at_peak: Operation | None = None
        self._queue, self.on_cpu = queue, queue.on_cpu
        self._references: dict[Value, int] = {}
        self._temporaries: list[Buffer] = []
        self._now: Operation | None = None
        self._order = schedule(graph.outputs, graph.operations())
        for operation in self._order:
            for value in operation.inputs:
                self._count(value, len(operation.outputs))
        for value in {*graph.outputs, *held, *graph.constants}:
            self._count(value, 1)
        placed = {*graph.inputs, *graph.constants}
        for value in placed:
            self.layouts[value] = plain(value, self.allocate(value.nbytes))
            self.layouts[value].buffer.holders += 1
        for value in placed:
            self._count(value, 0)  # what nothing reads is freed

    def run(self, allocations: int | None = None) -> "Simulation":
        """Evaluate all operations; stop after so many allocations, if that is given."""
        for operation in self._order:
            self._now = operation
            started = kernels.run(operation, self)
            for output in operation.outputs:
                self.layouts[output].buffer.holders += 1
            self._submit(operation, started)
            if allocations is not None and self._allocations >= allocations:
                break
            for value in operation.inputs:
                self._count(value, -len(operation.outputs))
            for output in operation.outputs:
                self._count(output, 0)
        return self

    @property
    def peak_allocation(self) -> int:
        """The number of the allocation that reached the peak."""
        return self._peak_allocation

    def allocate(self, nbytes: int) -> Buffer:
        size = self._queue.size(nbytes)
        self.active += size
        self._allocations += 1
        if self.active > self.peak:
            self.peak, self.at_peak, self._peak_allocation = self.active, self._now, self._allocations
        return Buffer(size)

    def use(self, nbytes: int) -> None:
        size = self.allocate(nbytes).nbytes
        self.active -= size

    def can_donate(self, value: Value) -> bool:
        return self._references[value] == 1 and self.layouts[value].buffer.holders == 1

    def keep_until_done(self, buffer: Buffer) -> None:
        self._temporaries.append(buffer)

    def _submit(self, operation: Operation, started: int) -> None:
        """Queue the kernels; they keep what they read until they have run."""
        own = self.layouts[operation.outputs[-1]].buffer
        read = [self.layouts[value] for value in operation.inputs]
        buffers = {layout.buffer for layout in read}
        buffers |= {self.layouts[output].buffer for output in operation.outputs[:-1]}
        kept = [*(buffers - {own}), *self._temporaries]
        self._temporaries = []
        for buffer in kept:
            buffer.holders += 1
        elements = sum(layout.used for layout in read)
        for buffer in self._queue.submit(operation, kept, started, elements):
            self._drop(buffer)

    def _count(self, value: Value, change: int) -> None:
        self._references[value] = self._references.get(value, 0) + change
        if not self._references[value] and value in self.layouts:
            self._drop(self.layouts.pop(value).buffer)

    def _drop(self, buffer: Buffer) -> None:
        buffer.holders -= 1
        if not buffer.holders:
            self.active -= buffer.nbytes
