"""The function in a file of `mx.export_function`, as operations whose inputs can be changed."""

import struct
from collections.abc import Iterable
from typing import NamedTuple

from purestep._export import cursor as writing
from purestep._export import layouts
from purestep._export.cursor import Cursor, EndError, Form


class Operation(NamedTuple):
    """An operation.

    Attributes:
        name: MLX's name of it.
        inputs: the numbers of the arrays that it reads.
        outputs: the numbers of the arrays that it makes.
        forms: their shapes and dtypes.
        arguments: its stream, name and arguments, as the file has them.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    forms: tuple[Form, ...]
    arguments: bytes


class Constant(NamedTuple):
    """An array that the function holds.

    Attributes:
        number: of the array.
        form: its shape and dtype.
        data: its bytes.
    """

    number: int
    form: Form
    data: bytes


class Program(NamedTuple):
    """A function of arrays.

    Attributes:
        version: that of MLX, as it wrote it.
        keywords: the names of the last inputs; the inputs before them have none.
        inputs: the numbers of the arguments, in order.
        forms: their shapes and dtypes.
        outputs: the numbers of the results, in order.
        operations: each after those that make its inputs.
        constants: what the operations read beside the inputs, in the order of their first use.
    """

    version: str
    keywords: tuple[str, ...]
    inputs: tuple[int, ...]
    forms: tuple[Form, ...]
    outputs: tuple[int, ...]
    operations: tuple[Operation, ...]
    constants: tuple[Constant, ...]


class UnknownError(ValueError):
    """An operation has arguments whose layout in the file is not known; the message is its name."""


def read(data: bytes) -> Program:
    """Return the function of a file that holds one.

    Raises:
        UnknownError: for an operation that is not known.
        EndError: if the file has another layout, as another version of MLX may write it.
    """
    cursor = Cursor(data)
    version, count, _shapeless, _metadata = cursor.text(), cursor.short(), cursor.byte(), cursor.text()
    if count != 1:
        raise EndError(f"{count} functions")
    keywords = tuple(cursor.text() for _ in range(cursor.long()))
    inputs = tuple(cursor.longs())
    forms = tuple(cursor.form() for _ in range(cursor.long()))
    outputs = tuple(cursor.longs())
    operations: list[Operation] = []
    constants: list[Constant] = []
    known = set(inputs)
    for _ in range(cursor.long()):
        number = cursor.long()
        if cursor.byte():
            operation = _operation(number, cursor)
            if not known.issuperset(operation.inputs):
                raise EndError(f"{operation.name} reads an array that is not made before it")
            operations.append(operation)
            known.update(operation.outputs)
        elif cursor.byte():
            form = cursor.form()
            constants.append(Constant(number, form, cursor.take(_bytes(form))))
            known.add(number)
        elif number not in known:
            raise EndError(f"{number} is not an input")
    if cursor.at != len(data):
        raise EndError(f"{len(data) - cursor.at} bytes more than a function has")
    return Program(version, keywords, inputs, forms, outputs, tuple(operations), tuple(constants))


def write(program: Program) -> Iterable[bytes]:
    """Yield the bytes of a file that MLX imports."""
    yield writing.text(program.version) + struct.pack("<iB", 1, 0) + writing.text("")
    yield writing.long(len(program.keywords)) + b"".join(map(writing.text, program.keywords))
    yield writing.longs(program.inputs)
    yield writing.long(len(program.forms)) + b"".join(map(writing.form, program.forms))
    yield writing.longs(program.outputs)
    yield writing.long(len(program.constants) + len(program.operations))
    for constant in program.constants:
        yield writing.long(constant.number) + b"\0\1" + writing.form(constant.form)
        yield constant.data
    for operation in program.operations:
        yield writing.long(operation.outputs[0]) + b"\1" + writing.longs(operation.inputs)
        yield operation.arguments
        if len(operation.outputs) == 1:
            yield writing.long(0) + writing.form(operation.forms[0])
            continue
        shapes, dtypes = zip(*operation.forms, strict=True)
        count = writing.long(len(operation.outputs))
        yield writing.long(len(operation.outputs) - 1) + writing.longs(operation.outputs)
        yield count + b"".join(map(writing.shape, shapes)) + count + b"".join(map(writing.dtype, dtypes))


def _operation(number: int, cursor: Cursor) -> Operation:
    inputs, begin = tuple(cursor.longs()), cursor.at
    cursor.take(12)  # the stream
    name = cursor.text()
    if not layouts.skip(name, cursor):
        raise UnknownError(name)
    arguments = cursor.data[begin : cursor.at]
    if not cursor.long():
        return Operation(name, inputs, (number,), (cursor.form(),), arguments)
    outputs = tuple(cursor.longs())
    shapes = [cursor.shape() for _ in range(cursor.long())]
    dtypes = [cursor.dtype() for _ in range(cursor.long())]
    if not len(outputs) == len(shapes) == len(dtypes) or number not in outputs:
        raise EndError(f"{name} has {len(outputs)} results and {len(shapes)} shapes")
    return Operation(name, inputs, outputs, tuple(zip(shapes, dtypes, strict=True)), arguments)


def _bytes(form: Form) -> int:
    size = form[1].size
    for length in form[0]:
        size *= length
    return size
