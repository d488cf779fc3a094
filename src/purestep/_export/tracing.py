"""Trace a step for a file, functions with gradients of their own included."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.run.directory import versions
from purestep._core import checks, cuda, tree
from purestep._core.tracing import context, custom
from purestep._export import plain, program
from purestep._export.cursor import EndError, Form
from purestep._export.program import Program
from purestep._graph.capture import HINTS, like, own_gradients, undescribed

Named = dict[str, mx.array]
_MOST = 4  # traces until two are alike
_UNWRITTEN = "Unable to serialize primitive "


class Traced(NamedTuple):
    """A function as a program.

    Attributes:
        program: its inputs are stand-ins, which no result may read in the end, and then the arguments.
        results: the numbers of the results.
        marks: those of the functions with gradients of their own; a place holds the number of an array.
    """

    program: Program
    results: tuple[int, ...]
    marks: list[custom.Mark]


def traced(fun: Callable[[Named], list[mx.array]], given: Named, caller: str) -> Traced:
    """Return the program of `fun(given)`; nothing of it is evaluated.

    Raises:
        ValueError: for an operation that MLX cannot write.
    """
    trace = _Trace(fun, given, caller)
    constants: list[mx.array] = []

    def keep(event: dict[str, Any]) -> None:
        constants.extend(array for _, array in event.get("constants", ()))

    with _described(caller):
        trace.count()
        trace.export(keep)
        stored = [_bytes(array, caller) for array in constants]
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory, "step")
            trace.export(str(file))
            found = _read(file, caller)
    if [each.form for each in found.constants] != [(array.shape, array.dtype) for array in constants]:
        raise _impure(caller)
    # MLX writes the memory of an array as it lies, also where the array is a view of it, such as a transpose.
    ordered = tuple(each._replace(data=data) for each, data in zip(found.constants, stored, strict=True))
    return Traced(found._replace(constants=ordered), *trace.numbered(found))


class _Trace:
    """The traces of a function. Each stand-in is an input: MLX merges equal arrays, but never two inputs."""

    def __init__(self, fun: Callable[[Named], list[mx.array]], given: Named, caller: str):
        self._fun, self._given, self._caller = fun, given, caller
        self._forms: list[Form] | None = None
        self._results, self._marks = 0, list[custom.Mark]()

    def count(self) -> None:
        """Find the stand-ins that the function needs, which `export` then makes inputs."""
        # The first trace may do more than later ones, such as checks of a new structure.
        for _ in range(_MOST):
            before, self._forms = self._forms, None
            self.export(lambda _: None)
            if self._forms == before:
                return
        raise _impure(self._caller)

    def export(self, to: Any) -> None:
        """Trace the function once more, into a file or a callback."""
        stand_ins: Any = tuple(mx.zeros(*form) for form in self._forms or ())
        # Others than the given arrays: MLX refuses a function that captures an array that it receives.
        given = {name: like(array) for name, array in self._given.items()}
        forms: list[Form] = []
        rest: Iterator[mx.array] = iter(())

        def supply(array: mx.array) -> mx.array:
            forms.append((array.shape, array.dtype))
            found = like(array) if self._forms is None else next(rest, None)
            if found is None or (found.shape, found.dtype) != forms[-1]:
                raise _impure(self._caller)
            return found

        def flat(*arrays: mx.array, **named: mx.array) -> list[mx.array]:
            nonlocal rest
            rest = iter(arrays)
            with custom.capturing(supply) as found:
                results = list(self._fun(named))
            self._results, self._marks = len(results), found.marks
            results += [array for mark in found.marks for array in _arrays(mark)]
            return [_read_last(array, supply(mx.array(0))) for array in results]

        mx.export_function(to, flat, *((stand_ins,) if stand_ins else ()), given)
        if self._forms not in (None, forms):
            raise _impure(self._caller)
        self._forms = forms

    def numbered(self, found: Program) -> tuple[tuple[int, ...], list[custom.Mark]]:
        """Return the results, and the marks with the numbers of their arrays."""
        last = {each.outputs[0]: each.inputs[0] for each in found.operations if each.name == "Depends"}
        numbers = iter([last[number] for number in found.outputs])
        results = tuple(islice(numbers, self._results))
        marks: Any = [
            mark._make([None if array is None else next(numbers) for array in part] for part in mark)
            for mark in self._marks
        ]
        return results, marks


def _read_last(array: mx.array, stand_in: mx.array) -> mx.array:
    # Where MLX merges equal operations of several outputs, it loses those that are outputs of the function.
    # It never loses what this operation reads, and a stand-in makes all of them different.
    found: Any = mx.depends([array], [stand_in])
    return found[0]


def _arrays(mark: custom.Mark) -> list[mx.array]:
    return [array for part in mark for array in part if array is not None]


def _impure(caller: str) -> ValueError:
    return checks.error(caller, "step must be a pure function, got one that did something else in each trace")


@contextmanager
def _described(caller: str) -> Iterator[None]:
    """Let functions that have their own gradient show their operations; name an operation that cannot be."""
    try:
        with own_gradients.installed(), context.installed(), plain.replaced(), cuda.kernels(allow=False):
            yield
    except ValueError as error:
        name = undescribed(error) or str(error).rpartition(_UNWRITTEN)[2]
        if name == str(error):
            raise
        hint = HINTS.get(name, f"MLX cannot write {name} to a file")
        raise checks.error(
            caller, f"step must have operations that can be exported, got {name}: {hint}"
        ) from None


def _read(file: Path, caller: str) -> Program:
    try:
        return program.read(file.read_bytes())
    except program.UnknownError as error:
        raise checks.error(
            caller,
            f"step must have operations that purestep knows, got {error} of MLX {versions()['mlx']}",
        ) from None
    except (EndError, UnicodeDecodeError) as error:
        raise checks.error(
            caller, f"MLX {versions()['mlx']} writes files that purestep does not know: {error}"
        ) from None


def _bytes(array: mx.array, caller: str) -> bytes:
    try:
        mx.eval(array)
    except (ValueError, RuntimeError):
        raise checks.error(
            caller,
            "step must not call a function with a gradient of its own within mx.vmap: "
            "MLX cannot export its gradient there",
        ) from None
    numbers = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    steps = zip(memoryview(numbers).strides or (), array.shape, strict=True)  # type: ignore[arg-type]
    if any(step <= 0 and length > 1 for step, length in steps):
        raise checks.error(  # MLX would read beyond its memory
            caller,
            "step must capture arrays that are not views of a smaller or reversed array, got one of "
            f"{tree.dtype_name(array.dtype)} {array.shape}: capture mx.contiguous(array)",
        )
    return bytes(memoryview(mx.contiguous(numbers)))  # type: ignore[arg-type]
