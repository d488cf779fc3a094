"""Put the gradients of functions with gradients of their own in the place of their marks.

MLX's gradient of a mark is a product of the cotangent and a stand-in, and a product of the result and another
stand-in. What follows reads the function's own gradient instead, which was traced from a third stand-in for
the cotangent. No stand-in remains.
"""

import itertools
import math
from collections.abc import Iterable
from typing import Any

from purestep._core import checks
from purestep._export.cursor import Form
from purestep._export.program import Constant, Operation, Program
from purestep._export.tracing import Traced


def resolved(traced: Traced, caller: str) -> Program:
    """Return the program without its marks and stand-ins.

    Raises:
        ValueError: if the gradient of such a function is used twice, or is differentiated.
    """
    program = traced.program
    stand_ins = set(program.inputs[: len(program.inputs) - len(program.keywords)])
    makers = {output: operation for operation in program.operations for output in operation.outputs}
    zeros: list[Constant] = []
    instead = _replacements(traced, makers, zeros, caller)
    for operation in program.operations:
        if operation.name == "StopGradient":  # nothing is differentiated any more
            instead.setdefault(operation.outputs[0], operation.inputs[0])
    outputs = tuple(_final(instead, each) for each in traced.results)
    operations = _ordered(outputs, makers, instead)
    read = {number for operation in operations for number in operation.inputs} | {*outputs}
    if read & stand_ins:
        raise _used(caller)
    skip = len(stand_ins)
    return program._replace(
        inputs=program.inputs[skip:],
        forms=program.forms[skip:],
        outputs=outputs,
        operations=tuple(operations),
        constants=tuple(each for each in (*program.constants, *zeros) if each.number in read),
    )


def _replacements(
    traced: Traced, makers: dict[int, Operation], zeros: list[Constant], caller: str
) -> dict[int, int]:
    """Return the array that stands in the place of another, by their numbers; add the zeros that it needs."""
    program = traced.program
    forms = dict(zip(program.inputs, program.forms, strict=True))
    taken = {*program.inputs, *makers, *(each.number for each in program.constants)}
    free = (number for number in itertools.count() if number not in taken)
    stand_ins = set(program.inputs[: len(program.inputs) - len(program.keywords)])
    products: dict[int, list[Operation]] = {}
    readers: dict[int, set[int]] = {}  # what is made from a stand-in
    for operation in program.operations:
        for number in stand_ins.intersection(operation.inputs):
            if operation.name != "Depends":  # each result has one, in the end
                readers.setdefault(number, set()).update(operation.outputs)
        if operation.name == "Multiply":
            for number in stand_ins.intersection(operation.inputs):
                products.setdefault(number, []).append(operation)
    instead: dict[int, int] = {}
    for mark in traced.marks:
        parts: Any = mark
        inputs, values, outputs, weights, scales, cotangents, gradients = parts
        instead.update(zip(outputs, values, strict=True))
        forward = {number for output in outputs for number in makers[output].inputs}
        for scale, stand_in in zip(scales, cotangents, strict=True):
            found = [each for each in products.get(scale, []) if each.outputs[0] not in forward]
            if len(found) > 1:
                raise _used(caller)
            if readers.get(scale, set()) <= forward:  # no gradient reads it: the cotangent is zero
                zeros.append(_zeros(next(free), forms[stand_in]))
                instead[stand_in] = zeros[-1].number
            for product in found:
                instead[stand_in] = next(number for number in product.inputs if number != scale)
        ways = iter(gradients)
        for array, weight in zip(inputs, weights, strict=True):
            gradient = next(ways, None)
            found = [each for each in products.get(weight, []) if array not in each.inputs]
            if len(found) > 1:
                raise _used(caller)
            if gradient is not None:
                instead.update((product.outputs[0], gradient) for product in found)
    return instead


def _zeros(number: int, form: Form) -> Constant:
    return Constant(number, form, bytes(form[1].size * math.prod(form[0])))


def _final(instead: dict[int, int], number: int) -> int:
    while number in instead:
        number = instead[number]
    return number


def _ordered(
    outputs: Iterable[int], makers: dict[int, Operation], instead: dict[int, int]
) -> list[Operation]:
    """Return the operations that make the outputs, depth first, each after those that make its inputs."""
    found: list[Operation] = []
    seen: set[int] = set()
    waiting: list[tuple[Operation, bool]] = []
    for output in outputs:
        if output in makers:
            waiting.append((makers[output], False))
        while waiting:
            operation, is_last = waiting.pop()
            if is_last:
                found.append(operation)
                continue
            if operation.outputs[0] in seen:
                continue
            seen.add(operation.outputs[0])
            inputs = tuple(_final(instead, number) for number in operation.inputs)
            waiting.append((operation._replace(inputs=inputs), True))
            waiting += [(makers[number], False) for number in reversed(inputs) if number in makers]
    return found


def _used(caller: str) -> ValueError:
    return checks.error(
        caller,
        "step must use a gradient that a function defines once, got one that uses it twice, differentiates "
        "it, or calls the function within mx.vmap",
    )
