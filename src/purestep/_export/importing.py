"""Read an exported step, and call it like the step itself."""

import os
from pathlib import Path
from typing import Any

import mlx.core as mx

from purestep._checkpoint.disk.naming import check_path
from purestep._core import checks, tree
from purestep._core.mean import Mean, MeanSum
from purestep._core.tracing import custom
from purestep._core.types import Batch, Tree
from purestep._export import sidecar
from purestep._export.exporting import names
from purestep._export.sidecar import Sidecar
from purestep._steps.compile import Compiled, compiled
from purestep._steps.step import Parts, Step

_CALLER = "import_step"


def import_step(path: str | os.PathLike[str]) -> Compiled[[Any, Any], Any]:
    """Return the step in a file that `export` wrote, compiled. The code of the model is not needed.

    Its results equal those of the compiled step that was exported, bit for bit. It works in `run`, `fit`,
    `scan` and `population`. It must not be differentiated: the file has neither `mx.stop_gradient` nor the
    gradients that functions define, so a gradient through it would be another one.

    Call it in the thread that imported MLX: only there does MLX compute what is in a file.

    Args:
        path: the file; `path + ".json"` must be beside it. Leave it unchanged while the step is in use:
            `scan` and `population` may read it again.

    Returns:
        `step(state, batch) -> (state, metrics)`, or `-> metrics` for an evaluation step. The new state has
        the containers of the state that it receives. Calls that do not fit the file raise a `ValueError` with
        the paths.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if the description is not one, is damaged, is of another file or in another version of the
            format; if another version of MLX wrote the file; if it was exported on another kind of device. On
            a call: for a gradient, or a file that has changed.

    >>> import mlx.core as mx, purestep as ps, tempfile
    >>> path = tempfile.mkdtemp() + "/count.mlxfn"
    >>> ps.export(lambda state, batch: (state + 1, {"sum": batch.sum()}), mx.array(0), mx.ones(3), path)
    >>> import_step(path)(mx.array(5), mx.ones(3))
    (array(6, dtype=int32), {'sum': array(3, dtype=float32)})
    """
    path = check_path(_CALLER, path)
    described = sidecar.read(path, _CALLER)
    return compiled(_Imported(described, path))


class _Imported(Step):
    """The function of a file with the trees of a step."""

    def __init__(self, described: Sidecar, path: Path):
        super().__init__(_no_parts, steps=described.steps)
        self._described, self._path, self._identity = described, path, _identity(path)
        self._unused: list[Any] = [mx.import_function(str(path))]

    def _function(self) -> Any:
        """Return a function of the file that was never called.

        `mx.vmap` changes the operations of an imported function in place: another call of the same function
        would compute something else, or end the process.
        """
        try:
            return self._unused.pop()
        except IndexError:
            if _identity(self._path) != self._identity:
                rule = f"{self._path} must stay unchanged while its step is in use, got another file or none"
                raise checks.error(_CALLER, f"{rule}: import it again") from None
            return mx.import_function(str(self._path))

    def __call__(self, state: Tree, batch: Batch) -> Any:
        if custom.is_capturing():  # MLX reads the constants of the file when it first computes with them
            raise checks.error(
                _CALLER,
                f"the operations of {self._path.name} cannot be read again: use the step that was exported, "
                "or copy the files",
            )
        # `compiled` calls this for new shapes only, so the checks cost nothing in a loop.
        for name, given, wanted in (
            ("state", state, self._described.state),
            ("batch", batch, self._described.batch),
        ):
            lines = tree.differences(tree.spec(given), wanted, "this call", "the file")
            if lines:
                raise checks.error(
                    _CALLER, f"{name} must fit {self._path.name}, got another one: " + "; ".join(lines)
                )
        found = self._function()(_without_gradient(names(state, batch)))
        results = dict(zip((name for name, _ in self._described.outputs()), found, strict=True))
        metrics = _filled(self._described.metrics, "metrics", results)
        if self._described.evaluation:
            return metrics
        return tree.unflatten(state, [results[name] for name in names(state, ())]), metrics


def _without_gradient(named: dict[str, mx.array]) -> dict[str, mx.array]:
    """Return the arrays; refuse a gradient, which would be another one than that of the exported step."""
    floating = {name: array for name, array in named.items() if mx.issubdtype(array.dtype, mx.inexact)}
    if not floating:
        return named
    function: Any = mx.custom_function(lambda *arrays: list(arrays))
    function.vjp(_refuse_gradient)
    function.jvp(_refuse_gradient)
    return named | dict(zip(floating, function(*floating.values()), strict=True))


def _refuse_gradient(*_: Any) -> Any:
    raise checks.error(
        _CALLER,
        "an imported step must not be differentiated: its file has neither mx.stop_gradient nor gradients "
        "that functions define; differentiate the step that was exported",
    )


def _identity(path: Path) -> tuple[int, ...] | None:
    """Return what tells one file from another without reading it, or `None` if there is no file."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def _no_parts(state: Tree, batch: Batch) -> Parts:
    raise TypeError(f"{_CALLER}: step.parts is not in the file: it has the new state and the metrics alone")


def _filled(spec: Any, path: str, results: dict[str, mx.array]) -> Any:
    """Return the tree of a spec with the arrays of their paths."""
    if isinstance(spec, tree.ArraySpec):
        return results[path]
    below = {
        segment: _filled(child, tree.join(path, segment), results)
        for segment, child in tree.spec_children(spec)
    }
    if spec.kind == "dict":
        return dict(zip((key for key, _ in spec.children), below.values(), strict=True))
    if spec.name == "Mean":
        return Mean(**below)
    return MeanSum(**below) if spec.name == "MeanSum" else tuple(below.values())
