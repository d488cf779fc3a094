"""Run a graph without computing it, and follow the memory that it takes.

MLX gives every kernel its memory when it is submitted, and takes it back when all kernels that read it are
done. The host is ahead: on a CPU by up to ten groups of ten kernels. It waits for one group when there are
more.
"""

from collections import deque

from purestep._graph.nodes import Graph, Operation, Value
from purestep._graph.scheduling import schedule
from purestep._memory import kernels
from purestep._memory.layout import Buffer, Layout, plain

_GROUPS = 10  # MAX_ACTIVE_TASKS
_IN_GROUP = 10  # DISPATCHES_PER_TASK


class Simulation:
    """The memory of one evaluation of a graph.

    Attributes:
        active: bytes in use.
        peak: the most that was in use.
        at_peak: the operation at which the peak was reached, and its position.
    """

    def __init__(self, graph: Graph, held: set[Value], constants_count: bool = True):
        self.layouts: dict[Value, Layout] = {}
        self.active = self.peak = 0
        self.at_peak: tuple[int, Operation] | None = None
        self._references: dict[Value, int] = {}
        self._temporaries: list[Buffer] = []
        self._groups: deque[list[Buffer]] = deque()
        self._group: list[Buffer] = []
        self._in_group = 0
        self._now: tuple[int, Operation] | None = None
        self._order = schedule(graph.outputs, graph.operations())
        for operation in self._order:
            for value in operation.inputs:
                self._references[value] = self._references.get(value, 0) + len(operation.outputs)
        for value in {*graph.outputs, *held}:
            self._references[value] = self._references.get(value, 0) + 1
        for value in {*graph.inputs, *graph.constants}:
            if value in self._references:
                self._place(value, plain(value, self.allocate(value.nbytes)))

    def run(self) -> "Simulation":
        """Evaluate all operations."""
        for index, operation in enumerate(self._order):
            self._now = index, operation
            started = kernels.run(operation, self)
            for output in operation.outputs:
                self.layouts[output].buffer.holders += 1
            self._submit(operation, started)
            for value in operation.inputs:
                self._release(value, len(operation.outputs))
            for output in operation.outputs:
                if not self._references.get(output):
                    self._drop(self.layouts.pop(output).buffer)
        return self

    def allocate(self, nbytes: int) -> Buffer:
        self.active += nbytes
        if self.active > self.peak:
            self.peak, self.at_peak = self.active, self._now
        return Buffer(nbytes)

    def can_donate(self, value: Value) -> bool:
        return self._references[value] == 1 and self.layouts[value].buffer.holders == 1

    def keep_until_done(self, buffer: Buffer) -> None:
        self._temporaries.append(buffer)

    def _place(self, value: Value, layout: Layout) -> None:
        layout.buffer.holders += 1
        self.layouts[value] = layout

    def _submit(self, operation: Operation, started: int) -> None:
        """Queue the kernels; they keep what they read until they have run."""
        own = self.layouts[operation.outputs[-1]].buffer
        buffers = {self.layouts[value].buffer for value in operation.inputs}
        buffers |= {self.layouts[output].buffer for output in operation.outputs[:-1]}
        buffers.discard(own)
        kept = [*buffers, *self._temporaries]
        self._temporaries = []
        for buffer in kept:
            buffer.holders += 1
        for _ in range(started):
            self._dispatch([])
        self._dispatch(kept)
        while len(self._groups) > _GROUPS:
            for buffer in self._groups.popleft():
                self._drop(buffer)

    def _dispatch(self, kept: list[Buffer]) -> None:
        self._group += kept
        self._in_group += 1
        if self._in_group == _IN_GROUP:
            self._groups.append(self._group)
            self._group, self._in_group = [], 0

    def _release(self, value: Value, count: int) -> None:
        self._references[value] -= count
        if not self._references[value]:
            self._drop(self.layouts.pop(value).buffer)

    def _drop(self, buffer: Buffer) -> None:
        buffer.holders -= 1
        if not buffer.holders:
            self.active -= buffer.nbytes
