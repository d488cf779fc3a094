"""Capture the graph of a function of arrays, gradients of its own included."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.tracing import context, custom
from purestep._core.tracing.replacing import Replacement
from purestep._core.types import Tree
from purestep._graph import experts, fast
from purestep._graph.nodes import Graph, Operation, Value, ordered, readers

Note = custom.Mark | custom.Opaque
own_gradients = Replacement(mx, custom_function=custom.custom_function)
HINTS = {
    "Load": "evaluate lazily loaded arrays first",
    "Compiled": "a function of mx.compile that reads only constants; evaluate its result first, "
    "or do not compile it",
    "CustomTransforms": "a function of mx.custom_function or mx.checkpoint that was made before; "
    "make it in the function that calls it",
}


def capture(fun: Callable[..., Tree], *args: Tree, caller: str = "capture") -> Graph:
    """Return the operations of `fun(*args)`, before any are fused; nothing is evaluated or allocated.

    Args:
        fun: a function of trees of arrays that returns a tree of arrays.
        args: its arguments; only shapes and dtypes matter, and values that are no arrays are kept.
        caller: who is named in errors.

    Raises:
        ValueError: if MLX cannot describe an operation, such as one with a gradient of its own that is made
            when a module is imported, or a compiled one that reads none of the arguments; if such a
            gradient is differentiated.
    """
    given = tree.leaves(args)
    places = [index for index, leaf in enumerate(given) if isinstance(leaf, mx.array)]
    events: list[dict[str, Any]] = []
    noted: list[Note] = []
    counts: list[int] = []

    def flat(*arrays: mx.array) -> list[mx.array]:
        leaves = list(given)
        for place, array in zip(places, arrays, strict=True):
            leaves[place] = array
        with custom.capturing() as found:
            result = fun(*tree.unflatten(args, leaves))
        results = [leaf for leaf in tree.leaves(result) if isinstance(leaf, mx.array)]
        noted.extend([*found.marks, *found.opaque])
        counts.append(len(results))
        return [*results, *(array for note in noted for array in _arrays(note))]

    try:
        with _described():
            # Others than the given arrays: MLX refuses a function that captures an array that it receives.
            mx.export_function(events.append, flat, *(like(given[place]) for place in places))
    except ValueError as error:
        name = undescribed(error)
        if not name:
            raise
        hint = HINTS.get(name, f"MLX does not describe {name}")
        raise checks.error(caller, f"the operations must be known, got {name}: {hint}") from None
    try:
        return _graph(events, counts[0], noted)
    except _DifferentiatedError:
        raise checks.error(
            caller,
            "a gradient that a function defines must be used once, got one that is differentiated: the "
            "operations of second derivatives are not known",
        ) from None


def undescribed(error: ValueError) -> str:
    """Return the operation that MLX cannot describe, by its error, or an empty string for other errors."""
    name = str(error).rpartition("Unable to get state for primitive ")[2]
    if name == str(error):
        return ""
    return "Compiled" if name.startswith("Compiled") else name


@contextmanager
def _described() -> Iterator[None]:
    """Let functions that have their own gradient show their operations, within the block.

    Compiled functions show theirs without help, because their arguments are traced.
    """
    with own_gradients.installed(), context.installed(), fast.described(), experts.described():
        yield


def like(array: mx.array) -> mx.array:
    """Return zeros like an array, which are not computed."""
    return mx.zeros(array.shape, array.dtype)


def _arrays(note: Note) -> list[mx.array]:
    return [array for part in note if not isinstance(part, str) for array in part if array is not None]


def _graph(events: list[dict[str, Any]], count: int, noted: list[Note]) -> Graph:
    values: dict[str, Value] = {}

    def value(described: Any) -> Value:
        name, shape, dtype = described
        if name not in values:
            values[name] = Value(shape, dtype)
        return values[name]

    inputs: list[Value] = []
    outputs: list[Value] = []
    constants: list[Value] = []
    for event in events:
        kind = event["type"]
        if kind == "inputs":
            inputs = [value(each) for each in event["inputs"]]
        elif kind == "outputs":
            outputs = [value(each) for each in event["outputs"]]
        elif kind == "constants":
            for name, array in event["constants"]:
                constants.append(value((name, array.shape, array.dtype)))
        elif kind == "primitive":
            read = [value(each) for each in event["inputs"]]
            made = [value(each) for each in event["outputs"]]
            Operation(event["name"], read, made, list(event["arguments"]))
    remaining = iter(outputs[count:])
    replaced = _Replaced(ordered(outputs))
    read: list[Any] = []
    for note in noted:
        parts: Any = [part if isinstance(part, str) else _named(part, remaining) for part in note]
        read.append(type(note)(*parts))
    marks = [note for note in read if isinstance(note, custom.Mark)]
    for note in read:
        if isinstance(note, custom.Mark):
            replaced.insert(note._replace(values=_made(note, marks, {*inputs, *constants})))
        else:
            Operation(note.name, note.inputs, note.outputs, [])
    outputs = replaced.settle(outputs[:count])
    constants += _drawn(inputs, outputs)
    used = {value for operation in ordered(outputs) for value in operation.inputs} | {*outputs}
    return Graph(inputs, outputs, [constant for constant in constants if constant in used])


def _made(mark: Any, marks: list[Any], given: set[Value]) -> list[Value]:
    """Return the values of a mark. MLX merges equal calls: then one mark has the values of both."""

    def is_made(value: Value) -> bool:
        return value.maker is not None or value in given

    alike = [
        other for other in marks if other.inputs == mark.inputs and len(other.values) == len(mark.values)
    ]
    found = []
    for index, value in enumerate(mark.values):
        same = [other.values[index] for other in alike]
        made = [each for each in same if is_made(each) and each.shape == value.shape]
        found.append(value if is_made(value) or not made else made[0])
    return found


def _named(arrays: list[Any], values: Iterator[Value]) -> list[Value | None]:
    return [None if array is None else next(values) for array in arrays]


def _drawn(inputs: list[Value], outputs: list[Value]) -> list[Value]:
    """Make constants of what is drawn without the inputs: weights that were not evaluated before."""
    operations = ordered(outputs)
    given, drawn = {*inputs}, set[Value]()
    for operation in operations:
        if not given.isdisjoint(operation.inputs):
            given.update(operation.outputs)
        elif operation.name == "RandomBits" or not drawn.isdisjoint(operation.inputs):
            drawn.update(operation.outputs)
    read = {value for each in operations if each.outputs[0] in given for value in each.inputs} | {*outputs}
    found = [value for value in read if value in drawn]
    for value in found:
        value.maker = None
    return found


class _DifferentiatedError(Exception):
    """A gradient that a function defines is differentiated."""


class _Replaced:
    """The marks of a graph, replaced by the operations and gradients that they stand for."""

    def __init__(self, operations: list[Operation]):
        self._readers = readers(operations)
        self._instead: dict[Value, Value] = {}
        self._products: list[list[Value]] = []  # those that stand for the same gradient

    def insert(self, mark: Any) -> None:
        """Replace one mark, whose arrays are values of the graph."""
        made = [output.maker for output in mark.outputs]
        for output, stand_in, scale in zip(mark.outputs, mark.cotangents, mark.scales, strict=True):
            found = None if scale is None else self._product(scale, made, output)
            if found is not None:
                self._instead[stand_in] = next(value for value in found.inputs if value is not scale)
        gradients = iter(mark.gradients)
        for weight in mark.weights:
            gradient = next(gradients, None)
            if weight is None or gradient is None:
                continue
            found = [
                each
                for each in self._readers.get(weight, [])
                if each.name == "Multiply" and not self._is_forward(each, weight, mark)
            ]
            self._instead.update((product.outputs[0], gradient) for product in found)
            self._products.append([product.outputs[0] for product in found])
        Operation("CustomTransforms", [*mark.inputs, *mark.values], mark.outputs, [])

    def _is_forward(self, product: Operation, weight: Value, mark: Any) -> bool:
        """Tell whether a product with a weight is that of the mark, not that of its gradient."""
        others = [value for value in product.inputs if value is not weight]
        if any(value in mark.inputs for value in others):
            return True
        if not any(reader.name == "Exp" for reader in self._readers.get(product.outputs[0], [])):
            return False
        # An equal argument that MLX did not merge, unless it is the gradient: a product with the exponential.
        makers = [value.maker for value in others if value.maker is not None]
        return not any(
            made.name == "Multiply" and any(v.maker and v.maker.name == "Exp" for v in made.inputs)
            for made in makers
        )

    def _product(self, scale: Value, made: list[Any], output: Value) -> Operation | None:
        """Return the product of a cotangent and a scale, which MLX's gradient made."""
        for operation in self._readers.get(scale, []):
            inner = any(operation.outputs[0] in maker.inputs for maker in made if maker is not None)
            if operation.name == "Multiply" and not inner:
                return operation
        return None

    def final(self, value: Value) -> Value:
        """Return what stands in the place of a value."""
        while value in self._instead:
            value = self._instead[value]
        return value

    def settle(self, outputs: list[Value]) -> list[Value]:
        """Let all operations read what stands in the place of their inputs; return the final outputs.

        Raises:
            _DifferentiatedError: if a gradient that a function defines is differentiated.
        """
        self._check(outputs)
        done: set[Operation] = set()
        outputs = [self.final(output) for output in outputs]
        waiting = [output.maker for output in outputs]
        while waiting:
            operation = waiting.pop()
            if operation is None or operation in done:
                continue
            done.add(operation)
            operation.inputs = [self.final(value) for value in operation.inputs]
            waiting += [value.maker for value in operation.inputs]
        return outputs

    def _check(self, outputs: list[Value]) -> None:
        """Refuse two products for one gradient in what the outputs need: a second derivative makes them."""
        needed: set[Value] = set()
        waiting = list(outputs)
        while waiting:
            value = waiting.pop()
            if value in needed:
                continue
            needed.add(value)
            waiting += [] if value.maker is None else value.maker.inputs
            if value in self._instead:
                waiting.append(self._instead[value])
        if any(len(needed.intersection(products)) > 1 for products in self._products):
            raise _DifferentiatedError
