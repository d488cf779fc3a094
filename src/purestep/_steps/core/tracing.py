"""Checks, counts and error messages for the moment when MLX traces a step."""

import linecache
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from traceback import walk_tb
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._steps.state import check_arrays

_KINDS = (mx.array, bool, int, float, str, dict, list, tuple)  # of leaves of a result
_PACKAGE = Path(__file__).parents[1]


class NotCompiledWarning(RuntimeWarning):
    """Warns that MLX does not compile, so that a compiled step runs its Python function at every call."""


class Traces:
    """The traces that one thread holds of one compiled object.

    Attributes:
        held: the spec of state and batch for each trace, in the order of tracing.
        made: the number of traces made, including those that were freed.
        warned: whether a `NotCompiledWarning` was given.
        enter: called before a stage of the step that this thread runs is traced.
    """

    def __init__(self) -> None:
        self.held: dict[tree.Spec, None] = {}  # an ordered set
        self.made = 0
        self.warned = False
        self.enter: Callable[[], None] = lambda: None

    def check_room(self, spec: tree.Spec, most: int | None) -> None:
        """Refuse a trace beyond the bound, with the paths whose shape or dtype varies."""
        if most is None or spec in self.held or len(self.held) < most:
            return
        varying = "; ".join(_varying([*self.held, spec]))
        raise checks.error(
            "compiled",
            f"the step would be traced {len(self.held) + 1} times, max_traces is {most}: {varying}. "
            "Give every batch the same shapes (pad, or drop the last), raise max_traces, or pass keep=, "
            "which frees the oldest traces. Each trace is compiled, and kept as long as the compiled step",
        )

    def add(self, spec: tree.Spec) -> None:
        """Record a trace. A trace that MLX repeats, such as on another stream, is not counted."""
        self.made += spec not in self.held
        self.held[spec] = None

    def discard(self, spec: tree.Spec) -> None:
        """Forget a trace that was freed."""
        self.held.pop(spec, None)


def is_traced(*trees: Any) -> bool:
    """Return whether the arrays are placeholders of a trace or of a transformation such as `mx.vmap`."""
    arrays = tree.leaves(trees)
    try:
        # MLX refuses to evaluate placeholders. Other arrays are scheduled, and nothing waits for them.
        mx.async_eval(arrays)
    except (ValueError, RuntimeError) as error:
        return "transformation" in str(error)
    return not arrays  # without arrays the cases cannot be told apart, and at most one trace is made


def spec_of(state: Any, batch: Any) -> tree.Spec:
    """Check that the arguments of a step are trees of arrays, and return their spec."""
    check_arrays("compiled", "state", state)
    check_arrays("compiled", "batch", batch)
    return tree.spec({"state": state, "batch": batch})


def check_result(result: Any) -> None:
    """Refuse a result of another type: MLX would return it unchanged, with placeholders instead of arrays."""
    if all(isinstance(leaf, _KINDS) for leaf in tree.leaves(result)):
        return
    for path, leaf in tree.items(result):
        if not isinstance(leaf, _KINDS):
            shown = path or "a result"
            raise TypeError(
                f"compiled: the step returned {shown} of type {type(leaf).__name__}; "
                "return arrays in dicts, lists, tuples and NamedTuples"
            )


def reworded(error: Exception, caller: str = "compiled") -> Exception | None:
    """Return a clearer error if the step read an array while it was traced, or `None` for other errors."""
    if "Attempting to eval an array" not in str(error):
        return None
    return checks.error(
        caller,
        f"{_place(error)} reads the value of an array, and arrays have no values while a step is compiled. "
        "A Python if or while on an array, float(), int(), .item(), .tolist(), print, mx.eval and NumPy "
        "read values. Replace the if by mx.where(condition, a, b), in schedules too; keep numbers as arrays; "
        "return values to print as metrics; or use the step without compiled",
    )


def reworded_index(error: IndexError) -> Exception | None:
    """Return a clearer error if MLX itself failed to compile, or `None` for other errors."""
    if not any(text in str(error) for text in ("_Map_base::at", "map::at")):
        return None
    return RuntimeError(
        "compiled: MLX cannot compile this step. It fails if mx.split is used twice on one array, such as in "
        "a function that is called twice: write slices instead, x[..., :n] and x[..., n:]. It also fails if "
        "two results are equal mx.stop_gradients: add 0 to one. Or use the step without compiled"
    )


def warn_not_compiled() -> None:
    """Warn that MLX runs the step's Python function at every call, with the reason."""
    warnings.warn(
        f"compiled: MLX does not compile here: {_reason()}. The step runs its Python function at every call. "
        "The results are the same, but it is slower and uses more memory",
        NotCompiledWarning,
        stacklevel=checks.users_level(),
    )


def _reason() -> str:
    if "MLX_DISABLE_COMPILE" in os.environ:
        return "the environment variable MLX_DISABLE_COMPILE is set"
    if mx.default_device().type == mx.DeviceType.cpu and shutil.which("g++") is None:
        return "there is no g++, which MLX needs to build kernels for CPUs; install it (apt-get install g++)"
    return "mx.disable_compile() was called; mx.enable_compile() undoes it"


def _place(error: Exception) -> str:
    """Return the file, line and text of the innermost code outside this package."""
    found = "the step"
    for frame, number in walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not Path(file).is_relative_to(_PACKAGE):
            text = linecache.getline(file, number).strip()
            found = f"{Path(file).name}, line {number}" + (f" ({text})" if text else "")
    return found


def _varying(specs: list[tree.Spec]) -> list[str]:
    signatures = [
        {path: f"{array.dtype} {array.shape}" for path, array in tree.spec_items(spec)} for spec in specs
    ]
    lines = []
    for path in dict.fromkeys(path for signature in signatures for path in signature):
        seen = list(dict.fromkeys(signature.get(path, "absent") for signature in signatures))
        if len(seen) > 1:
            more = f" and {len(seen) - 4} more" if len(seen) > 4 else ""
            lines.append(f"{path} varies: {', '.join(seen[:3] + seen[-1:] if len(seen) > 4 else seen)}{more}")
    return lines or tree.differences(specs[-1], specs[0], "this call", "the first")
