"""Operations whose results share the memory of an input."""

from typing import Protocol

from purestep._graph.nodes import Operation, Value
from purestep._memory.layout import Buffer, Layout, broadcast, plain, reshaped, sliced, strided, transposed


class Machine(Protocol):
    """What a kernel asks of the simulated machine."""

    layouts: dict[Value, Layout]
    on_cpu: bool

    def allocate(self, nbytes: int) -> Buffer:
        """Return new memory."""
        ...

    def can_donate(self, value: Value) -> bool:
        """Tell whether nothing else keeps an array or its memory."""
        ...

    def use(self, nbytes: int) -> None:
        """Take memory that the kernel returns when it has run."""
        ...

    def keep_until_done(self, buffer: Buffer) -> None:
        """Keep a temporary until the kernel has run."""
        ...


SHARED = frozenset(
    "Transpose Reshape Flatten Unflatten Broadcast BroadcastAxes ExpandDims Squeeze Slice Split AsStrided "
    "Copy StopGradient Depends CustomTransforms View".split()
)


def share(operation: Operation, machine: Machine) -> int:
    """Give the outputs the layout of the input; return the number of kernels, 1 if it must be copied."""
    name, inputs = operation.name, operation.inputs
    value, of = operation.outputs[0], machine.layouts[inputs[0]]
    if name in ("Reshape", "Flatten", "Unflatten"):
        found = reshaped(value, inputs[0], of)
        if found is None:
            machine.layouts[value] = plain(value, machine.allocate(value.nbytes))
            return 1
        machine.layouts[value] = found
    elif name == "Transpose":
        machine.layouts[value] = transposed(value, of, operation.arguments[0])
    elif name in ("Broadcast", "BroadcastAxes"):
        machine.layouts[value] = broadcast(value, inputs[0], of)
    elif name == "ExpandDims":
        strides = list(of.strides)
        for axis in operation.arguments[0]:
            strides.insert(axis, 1)
        machine.layouts[value] = Layout(
            of.buffer, tuple(strides), of.used, of.gapless, of.by_rows, of.by_columns
        )
    elif name == "Squeeze":
        dropped = set(operation.arguments[0])
        kept = tuple(stride for axis, stride in enumerate(of.strides) if axis not in dropped)
        machine.layouts[value] = Layout(of.buffer, kept, of.used, of.gapless, of.by_rows, of.by_columns)
    elif name == "Slice":
        machine.layouts[value] = sliced(value, of, tuple(operation.arguments[2]))
    elif name == "AsStrided":
        machine.layouts[value] = strided(value, of, tuple(operation.arguments[1]))
    elif name == "Split":
        for output in operation.outputs:
            machine.layouts[output] = sliced(output, of, (1,) * len(output.shape))
    elif name == "CustomTransforms":
        for output, given in zip(operation.outputs, inputs[-len(operation.outputs) :], strict=True):
            machine.layouts[output] = same(machine.layouts[given])
    elif name == "Depends":
        for output, given in zip(operation.outputs, inputs, strict=False):
            machine.layouts[output] = same(machine.layouts[given])
    elif name == "View" and value.dtype.size == inputs[0].dtype.size:
        machine.layouts[value] = same(of)
    else:
        machine.layouts[value] = plain(value, of.buffer)
    return 0


def same(layout: Layout) -> Layout:
    return layout.moved(layout.buffer)
