"""Read an exported step, and call it like the step itself."""

import os
from pathlib import Path
from typing import Any

import mlx.core as mx

from purestep._checkpoint.disk.naming import check_path
from purestep._core import checks, tree
from purestep._core.mean import Mean, MeanSum
from purestep._core.types import Batch, Tree
from purestep._export import sidecar
from purestep._export.exporting import names
from purestep._export.sidecar import Sidecar
from purestep._steps.compile import Compiled, compiled
from purestep._steps.step import Parts, Step

_CALLER = "import_step"


def import_step(path: str | os.PathLike[str]) -> Compiled[[Any, Any], Any]:
    """Return the step in a file that `export` wrote, compiled. The code of the model is not needed.

    Its results equal those of the compiled step that was exported, bit for bit.

    Args:
        path: the file; `path + ".json"` must be beside it.

    Returns:
        `step(state, batch) -> (state, metrics)`, or `-> metrics` for an evaluation step. The new state has
        the containers of the state that it receives. Calls that do not fit the file raise a `ValueError` with
        the paths.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if the description is not one, is damaged, is of another file or in another version of the
            format; if another version of MLX wrote the file; if it was exported on another kind of device.

    >>> import mlx.core as mx, purestep as ps, tempfile
    >>> path = tempfile.mkdtemp() + "/count.mlxfn"
    >>> ps.export(lambda state, batch: (state + 1, {"sum": batch.sum()}), mx.array(0), mx.ones(3), path)
    >>> import_step(path)(mx.array(5), mx.ones(3))
    (array(6, dtype=int32), {'sum': array(3, dtype=float32)})
    """
    path = check_path(_CALLER, path)
    described = sidecar.read(path, _CALLER)
    function: Any = mx.import_function(str(path))
    return compiled(_Imported(function, described, path))


class _Imported(Step):
    """The function of a file with the trees of a step."""

    def __init__(self, function: Any, described: Sidecar, path: Path):
        super().__init__(_no_parts, steps=described.steps)
        self._function, self._described, self._path = function, described, path

    def __call__(self, state: Tree, batch: Batch) -> Any:
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
        found = self._function(names(state, batch))
        results = dict(zip((name for name, _ in self._described.outputs()), found, strict=True))
        metrics = _filled(self._described.metrics, "metrics", results)
        if self._described.evaluation:
            return metrics
        return tree.unflatten(state, [results[name] for name in names(state, ())]), metrics


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
