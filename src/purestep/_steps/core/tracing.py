"""What runs while MLX traces a step: checks, the bound on traces, and errors in plain words."""

import linecache
import os
import shutil
import warnings
from pathlib import Path
from traceback import walk_tb
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._steps.state import check_arrays

_PACKAGE = Path(__file__).parents[1]


class NotCompiledWarning(RuntimeWarning):
    """MLX does not compile here: a compiled step runs its Python function at every call."""


class Traces:
    """The traces that one thread holds of one compiled object.

    Attributes:
        held: the `tree.spec` of state and batch, for each set of shapes and dtypes.
        made: how many traces were made, those freed since then too.
        warned: whether a warning was given that MLX does not compile.
    """

    def __init__(self) -> None:
        self.held: dict[str, list[Any]] = {}
        self.made = 0
        self.warned = False

    def check_room(self, spec: list[Any], most: int | None) -> None:
        """Refuse one trace too many, with the paths whose shape or dtype varies."""
        if most is None or repr(spec) in self.held or len(self.held) < most:
            return
        varying = "; ".join(_varying([*self.held.values(), spec]))
        raise checks.error(
            "compiled",
            f"the step would be traced {len(self.held) + 1} times, max_traces is {most}: {varying}. "
            "Give every batch the same shapes (pad, or drop the last), raise max_traces, or give keep, which "
            "frees the oldest: each trace is compiled, and kept until the compiled step is dropped",
        )

    def add(self, spec: list[Any]) -> None:
        """Remember a trace; one that MLX makes again, as on another stream, is not counted."""
        known = repr(spec)
        self.made += known not in self.held
        self.held[known] = spec


def is_traced(*trees: Any) -> bool:
    """Tell whether arrays are the placeholders of a trace, or of another transformation such as `mx.vmap`."""
    arrays = tree.leaves(trees)
    try:
        # Placeholders are refused. Other arrays are scheduled: nothing waits for them.
        mx.async_eval(arrays)
    except (ValueError, RuntimeError) as error:
        return "transformation" in str(error)
    return not arrays  # nothing tells, and nothing is traced twice


def spec_of(state: Any, batch: Any) -> list[Any]:
    """Describe the arguments of a step, once they are known to be trees of arrays."""
    check_arrays("compiled", "state", state)
    check_arrays("compiled", "batch", batch)
    return tree.spec({"state": state, "batch": batch})


def check_result(result: Any) -> None:
    """Refuse an object that MLX hands back as it is, with dead placeholders in it."""
    for path, leaf in tree.items(result):
        if not isinstance(leaf, (mx.array, bool, int, float, str, dict, list, tuple)):
            shown = path or "a result"
            raise TypeError(
                f"compiled: the step returned {shown} of type {type(leaf).__name__}; "
                "return arrays in dicts, lists, tuples and NamedTuples"
            )


def reworded(error: Exception) -> Exception | None:
    """Return the error for a step that reads an array while it is traced, or `None` for any other error."""
    if "Attempting to eval an array" not in str(error):
        return None
    return checks.error(
        "compiled",
        f"{_place(error)} reads the value of an array, which does not exist while a step is compiled. "
        "A Python if or while on an array, float(), int(), .item(), .tolist(), print, mx.eval and NumPy "
        "do this. Write mx.where(condition, a, b) for the if, in schedules too, keep numbers as arrays, and "
        "return what you want to print as a metric; or use the step without compiled",
    )


def warn_not_compiled() -> None:
    """Say that MLX runs the step's Python function at every call, and why."""
    warnings.warn(
        f"compiled: MLX does not compile here: {_reason()}. The step runs its Python function at every call: "
        "the results are the same, but it is slower and uses more memory",
        NotCompiledWarning,
        stacklevel=checks.users_level(),
    )


def _reason() -> str:
    if "MLX_DISABLE_COMPILE" in os.environ:
        return "the environment variable MLX_DISABLE_COMPILE is set"
    if mx.default_device().type == mx.DeviceType.cpu and shutil.which("g++") is None:
        return "there is no g++, which builds its kernels for CPUs; install it (apt-get install g++)"
    return "mx.disable_compile() was called; mx.enable_compile() undoes it"


def _place(error: Exception) -> str:
    """Return the file, line and text of the innermost code that is not this package's own."""
    found = "the step"
    for frame, number in walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not Path(file).is_relative_to(_PACKAGE):
            text = linecache.getline(file, number).strip()
            found = f"{Path(file).name}, line {number}" + (f" ({text})" if text else "")
    return found


def _varying(specs: list[list[Any]]) -> list[str]:
    signatures = [
        {path: f"{dtype} {shape}" for path, (dtype, shape) in tree.spec_items(spec)} for spec in specs
    ]
    lines = []
    for path in dict.fromkeys(path for signature in signatures for path in signature):
        seen = list(dict.fromkeys(signature.get(path, "absent") for signature in signatures))
        if len(seen) > 1:
            more = f" and {len(seen) - 4} more" if len(seen) > 4 else ""
            lines.append(f"{path} varies: {', '.join(seen[:3] + seen[-1:] if len(seen) > 4 else seen)}{more}")
    return lines or tree.differences(specs[-1], specs[0], "this call", "the first")
