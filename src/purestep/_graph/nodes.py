"""Graphs of operations: arrays with shapes and dtypes, and the operations between them."""

from collections.abc import Container, Iterable
from typing import Any

import mlx.core as mx


class Value:
    """An array of a graph: its shape and dtype, and the operation that makes it.

    Attributes:
        shape: of the array.
        dtype: of the array.
        maker: the operation, or `None` for an input or a constant.
        name: that of the input or constant, else empty.
    """

    __slots__ = ("dtype", "maker", "name", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: mx.Dtype, name: str = ""):
        self.shape, self.dtype, self.name = tuple(shape), dtype, name
        self.maker: Operation | None = None

    @property
    def size(self) -> int:
        """The number of elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    @property
    def nbytes(self) -> int:
        """The bytes of all elements."""
        return self.size * self.dtype.size


class Operation:
    """One of MLX's operations: its name, inputs, outputs and arguments, such as axes."""

    __slots__ = ("arguments", "inputs", "inside", "name", "outputs")

    def __init__(self, name: str, inputs: list[Value], outputs: list[Value], arguments: list[Any]):
        self.name, self.inputs, self.outputs, self.arguments = name, inputs, outputs, arguments
        self.inside: list[Operation] = []  # of a fused kernel, in order
        for output in outputs:
            output.maker = self


class Graph:
    """A function as operations.

    Attributes:
        inputs: the arguments, in order.
        outputs: the results, in order.
        constants: arrays that the function reads from elsewhere.
    """

    def __init__(self, inputs: list[Value], outputs: list[Value], constants: list[Value]):
        self.inputs, self.outputs, self.constants = inputs, outputs, constants

    def operations(self) -> list[Operation]:
        """Return all operations, each after those that make its inputs."""
        return ordered(self.outputs)


def ordered(outputs: Iterable[Value], among: Container[Operation] | None = None) -> list[Operation]:
    """Return the operations that make the outputs, depth first, each after those that make its inputs.

    Args:
        outputs: values of the graph.
        among: follow only these operations; `None` follows all.
    """
    found: list[Operation] = []
    seen: set[Operation] = set()
    stack: list[tuple[Operation, int]] = []
    for output in outputs:
        if output.maker is not None and output.maker not in seen:
            seen.add(output.maker)
            stack.append((output.maker, 0))
        while stack:
            operation, index = stack.pop()
            if index == len(operation.inputs):
                found.append(operation)
                continue
            stack.append((operation, index + 1))
            maker = operation.inputs[index].maker
            if maker is not None and maker not in seen and (among is None or maker in among):
                seen.add(maker)
                stack.append((maker, 0))
    return found


def readers(operations: Iterable[Operation]) -> dict[Value, list[Operation]]:
    """Return the operations that read each value; an operation is listed once for each time it reads it."""
    found: dict[Value, list[Operation]] = {}
    for operation in operations:
        for value in operation.inputs:
            found.setdefault(value, []).append(operation)
    return found
