"""The memory that each of MLX's operations takes for its results."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._graph.nodes import Operation, Value
from purestep._memory.convolutions import convolve
from purestep._memory.layout import Layout, plain
from purestep._memory.views import SHARED, Machine, same, share

_UNARY = frozenset(
    "Abs ArcCos ArcCosh ArcSin ArcSinh ArcTan ArcTanh Ceil Cos Cosh Conjugate Erf ErfInv Exp Floor Log "
    "Log1p LogicalNot Negative Round Sigmoid Sign Sin Sinh Square Sqrt Tan Tanh Expm1 Real Imag "
    "BitwiseInvert".split()
)
_BINARY = frozenset(
    "Add Divide Equal Greater GreaterEqual Less LessEqual LogicalAnd LogicalOr LogAddExp Maximum Minimum "
    "Multiply NotEqual Power Subtract BitwiseBinary ArcTan2 Remainder".split()
)
# They copy their first input and change the copy.
_CHANGED = frozenset("Scatter ScatterAxis SliceUpdate DynamicSliceUpdate MaskedScatter".split())
_SUMS = (2, 3)  # MLX's numbers of the reductions sum and product
_SPARE = 16384  # bytes by which a donated buffer may be larger


def run(operation: Operation, machine: Machine) -> int:
    """Give the outputs of an operation their layouts; return the number of kernels that it starts."""
    name = operation.name
    if name in SHARED:
        return share(operation, machine)
    return _KERNELS.get(name, _plain)(operation, machine)


def _plain(operation: Operation, machine: Machine) -> int:
    for output in operation.outputs:
        machine.layouts[output] = plain(output, machine.allocate(output.nbytes))
    return 1


def _fits(machine: Machine, value: Value, output: Value) -> bool:
    return (
        value.dtype.size == output.dtype.size
        and machine.layouts[value].buffer.nbytes <= output.nbytes + _SPARE
        and machine.can_donate(value)
    )


def _like(machine: Machine, value: Value, output: Value) -> None:
    """Give an output the layout of an input, in its memory if it can be donated."""
    layout = machine.layouts[value]
    if _fits(machine, value, output):
        machine.layouts[output] = same(layout)
    else:
        machine.layouts[output] = layout.moved(machine.allocate(layout.used * output.dtype.size))


def _unary(operation: Operation, machine: Machine) -> int:
    (value, *_), output = operation.inputs, operation.outputs[0]
    if machine.layouts[value].gapless:
        _like(machine, value, output)
        return 1
    return _plain(operation, machine)


def _binary(operation: Operation, machine: Machine) -> int:
    (first, second), output = operation.inputs[:2], operation.outputs[0]
    a, b = machine.layouts[first], machine.layouts[second]
    if a.used == 1 and b.used == 1:
        machine.layouts[output] = a.moved(machine.allocate(output.dtype.size))
    elif a.used == 1 and b.gapless:
        _like(machine, second, output)
    elif b.used == 1 and a.gapless:
        _like(machine, first, output)
    elif (a.by_rows and b.by_rows) or (a.by_columns and b.by_columns):
        _like(machine, first if _fits(machine, first, output) else second, output)
    else:
        _in_any(operation.inputs, output, machine)
    return 1


def _in_any(inputs: list[Value], output: Value, machine: Machine) -> None:
    """Put an output into the memory of an input in C order that can be donated, else into its own."""
    for value in inputs:
        layout = machine.layouts[value]
        if layout.by_rows and value.size == output.size and _fits(machine, value, output):
            machine.layouts[output] = plain(output, layout.buffer)
            return
    machine.layouts[output] = plain(output, machine.allocate(output.nbytes))


def _select(operation: Operation, machine: Machine) -> int:
    inputs, output = operation.inputs, operation.outputs[0]
    layouts = [machine.layouts[value] for value in inputs]
    if all(layout.used == 1 for layout in layouts):
        machine.layouts[output] = layouts[1].moved(machine.allocate(output.dtype.size))
    elif all(layout.by_rows for layout in layouts) or all(layout.by_columns for layout in layouts):
        donor = next((value for value in inputs if _fits(machine, value, output)), None)
        _like(machine, inputs[1] if donor is None else donor, output)
    else:
        _in_any(inputs, output, machine)
    return 1


def _compiled(operation: Operation, machine: Machine) -> int:
    outputs = operation.outputs
    scalars = set(operation.arguments[0])
    given = [value for value in operation.inputs if value not in scalars]
    arrays = [value for value in given if value.size > 1]
    shape = outputs[0].shape
    layouts = [machine.layouts[value] for value in arrays]
    alike = [value.shape == shape for value in arrays]
    if len(arrays) == 1:
        contiguous = alike[0] and layouts[0].gapless
    elif arrays:
        contiguous = all(alike) and (
            all(layout.by_rows for layout in layouts) or all(layout.by_columns for layout in layouts)
        )
    else:
        contiguous = not shape
    remaining = list(outputs)
    for value in given:
        if not remaining:
            break
        layout, output = machine.layouts[value], remaining[0]
        if value.dtype.size != output.dtype.size or not machine.can_donate(value):
            continue
        if contiguous and value.size > 1:
            machine.layouts[remaining.pop(0)] = same(layout)
        elif not contiguous and layout.by_rows and value.size == output.size:
            machine.layouts[remaining.pop(0)] = plain(output, layout.buffer)
    like = next((machine.layouts[value] for value in given if value.size == outputs[0].size), None)
    for output in remaining:
        if contiguous and like is not None:
            machine.layouts[output] = like.moved(machine.allocate(like.used * output.dtype.size))
        else:
            machine.layouts[output] = plain(output, machine.allocate(output.nbytes))
    return 1


def _copied_first(operation: Operation, machine: Machine) -> int:
    value, output = operation.inputs[0], operation.outputs[0]
    layout = machine.layouts[value]
    if layout.by_rows and layout.used > 1:
        _like(machine, value, output)
    else:
        machine.layouts[output] = plain(output, machine.allocate(output.nbytes))
    return 2


def _softmax(operation: Operation, machine: Machine) -> int:
    (value, *_), output = operation.inputs, operation.outputs[0]
    layout = machine.layouts[value]
    if layout.gapless and layout.strides[-1:] in ((1,), ()):
        _like(machine, value, output)
        return 1
    return _plain(operation, machine) + 1


def _matmul(operation: Operation, machine: Machine) -> int:
    output, kernels = operation.outputs[0], 1
    if operation.name == "AddMM":
        added = operation.inputs[2]
        layout = machine.layouts[added]
        if layout.by_rows and layout.used > 1 and added.size == output.size:
            _like(machine, added, output)
        else:
            machine.layouts[output] = plain(output, machine.allocate(output.nbytes))
        kernels += 1
    else:
        machine.layouts[output] = plain(output, machine.allocate(output.nbytes))
    for value in operation.inputs[:2]:
        if not _multiplies(value, machine.layouts[value]):
            machine.keep_until_done(machine.allocate(value.nbytes))
            kernels += 1
    return kernels


def _multiplies(value: Value, layout: Layout) -> bool:
    """Tell whether matrix products read an array where it is: its last two axes have no gaps."""
    if len(value.shape) < 2:
        return True
    (rows, columns), (far, near) = value.shape[-2:], layout.strides[-2:]
    return (far == columns and near == 1) or (far == 1 and near == rows)


def _in_order(operation: Operation, machine: Machine) -> int:
    """A kernel that copies inputs which are not in C order."""
    kernels = 1
    for value in operation.inputs:
        if not machine.layouts[value].by_rows and value.size > 1:
            machine.keep_until_done(machine.allocate(value.nbytes))
            kernels += 1
    return _plain(operation, machine) + kernels - 1


def _reduce(operation: Operation, machine: Machine) -> int:
    """On a CPU sums and products of 16-bit numbers are computed in float32 and cast."""
    output = operation.outputs[0]
    kernels = _plain(operation, machine)
    if machine.on_cpu and operation.arguments[0] in _SUMS and output.dtype in (mx.bfloat16, mx.float16):
        machine.use(output.size * mx.float32.size)
    return kernels


_KERNELS: dict[str, Callable[[Operation, Any], int]] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_CHANGED, _copied_first),
    "Select": _select,
    "Compiled": _compiled,
    "AsType": _unary,
    "Softmax": _softmax,
    "Matmul": _matmul,
    "AddMM": _matmul,
    "Convolution": convolve,
    "Reduce": _reduce,
    "Scan": _in_order,
    "LogSumExp": _in_order,
    "QuantizedMatmul": _in_order,
    "GatherQMM": _in_order,
    "GatherMM": _in_order,
}
