"""The kernels that `mx.compile` makes of a graph.

MLX fuses elementwise operations that lead to one result. A fused kernel is at most 11 operations deep and
reads fewer than 24 arrays. An operation that is also read from outside the kernel stays outside, so that its
result is computed once; broadcasts are repeated instead.
"""

from purestep._graph.nodes import Graph, Operation, Value, ordered, readers

_DEEPEST = 11
_MOST_INPUTS = 24
_ELEMENTWISE = frozenset(
    "Abs ArcCos ArcCosh ArcSin ArcSinh ArcTan ArcTanh AsType Ceil Cos Cosh Conjugate Remainder Erf ErfInv "
    "Exp Floor Log Log1p LogicalNot Negative Round Sigmoid Sign Sin Sinh Square Sqrt Tan Tanh Expm1 Real "
    "Imag BitwiseInvert Add Divide Equal Greater GreaterEqual Less LessEqual LogicalAnd LogicalOr LogAddExp "
    "Maximum Minimum Multiply NotEqual Power Subtract BitwiseBinary ArcTan2 Select Broadcast".split()
)


def fused(graph: Graph) -> Graph:
    """Return the graph with the kernels that MLX's compiler would make; operations named `Compiled`."""
    outputs = set(graph.outputs)
    constants = set(graph.constants)
    operations = ordered(graph.outputs)
    read_by = {value: list(dict.fromkeys(found)) for value, found in readers(operations).items()}
    inside: set[Operation] = set()
    for operation in reversed(operations):
        if operation in inside or operation.name not in _ELEMENTWISE or operation.name == "Broadcast":
            continue
        group = _Group(operation, outputs, read_by)
        if len(group.members) <= 1:
            continue
        members = group.in_order()
        inside.update(members)
        _join(members, outputs, constants, read_by)
    return Graph(graph.inputs, graph.outputs, graph.constants)


class _Group:
    """The operations that are fused with the one that makes their result."""

    def __init__(self, last: Operation, outputs: set[Value], read_by: dict[Value, list[Operation]]):
        self._last, self._outputs, self._read_by = last, outputs, read_by
        self._shape = last.outputs[-1].shape
        self._inputs: set[Value] = set()
        self.members: set[Operation] = set()
        self._gather(last.outputs[-1], 0)

    def _gather(self, value: Value, depth: int) -> None:
        maker = value.maker
        if maker in self.members:
            return
        if depth >= _DEEPEST or maker is None or maker.name not in _ELEMENTWISE:
            self._inputs.add(value)
            return
        if value in self._outputs and value.shape != self._shape:
            self._inputs.add(value)
            return
        if depth and not all(reader in self.members for reader in self._read_by[value]):
            if maker.name != "Broadcast" or len(self._inputs) >= _MOST_INPUTS:
                self._inputs.add(value)
                return
            maker = self._own_copy(value)
            value = maker.outputs[0]
        if value in self._outputs:
            self._inputs.add(value)
        else:
            self._inputs.discard(value)
        if len(self._inputs) >= _MOST_INPUTS:
            return
        self.members.add(maker)
        for each in list(maker.inputs):
            self._gather(each, depth + 1)

    def _own_copy(self, value: Value) -> Operation:
        """Repeat a broadcast for the members of this group, where others read it too."""
        maker = value.maker
        assert maker is not None
        copied = Value(value.shape, value.dtype)
        again = Operation(maker.name, list(maker.inputs), [copied], maker.arguments)
        within = [reader for reader in self._read_by[value] if reader in self.members]
        for reader in within:
            reader.inputs = [copied if each is value else each for each in reader.inputs]
        self._read_by[value] = [reader for reader in self._read_by[value] if reader not in self.members]
        self._read_by[copied] = within
        for each in maker.inputs:
            self._read_by[each].append(again)
        return again

    def in_order(self) -> list[Operation]:
        """Return the members, each after those that make its inputs."""
        return [each for each in ordered(self._last.outputs, self.members) if each in self.members]


def _join(
    members: list[Operation],
    outputs: set[Value],
    constants: set[Value],
    read_by: dict[Value, list[Operation]],
) -> None:
    """Make one operation of several, in place."""
    among = set(members)
    results = [member.outputs[0] for member in members[:-1] if member.outputs[0] in outputs]
    results.append(members[-1].outputs[0])
    read: dict[Value, None] = {}
    for member in members:
        for value in member.inputs:
            if value.maker not in among:
                read[value] = None
    scalars = [value for value in read if value in constants and value.size == 1]
    joined = Operation("Compiled", list(read), results, [scalars])
    joined.inside = members
    for value in read:
        read_by[value] = [reader for reader in read_by[value] if reader not in among] + [joined]
    for result in results:
        read_by[result] = [reader for reader in read_by.get(result, []) if reader not in among]
