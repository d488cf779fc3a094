"""Write a step to a file that MLX runs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from purestep._checkpoint.disk import atomic
from purestep._checkpoint.disk.naming import check_path
from purestep._core import checks, tree
from purestep._core.mean import Mean, MeanSum
from purestep._core.rng import forbidden
from purestep._core.types import Batch, Tree
from purestep._export import program, sidecar
from purestep._export.resolving import resolved
from purestep._export.sidecar import Sidecar
from purestep._export.tracing import traced
from purestep._steps.compile import Compiled
from purestep._steps.core.tracing import reworded
from purestep._steps.state import check_arrays
from purestep._steps.step import Step

_CALLER = "export"
_REMEDY = "take one from state.rng, or draw within rng.scope(key)"


def export(step: Callable[[Any, Any], Any], state: Tree, batch: Batch, path: str | os.PathLike[str]) -> None:
    """Write a step to one file that MLX runs without Python, in C++ and Swift for example.

    The file is that of `mx.export_function`, with the gradients of all functions in it. `path + ".json"`
    describes it: the versions of purestep and MLX, the device, the name, shape and dtype of each input and
    output in their order, and the containers of state, batch and metrics. `import_step` reads both.

    Inputs are named by their paths, such as `state.params.layers.0.weight` and `batch.x`: in C++ the function
    receives a map of names to arrays. Outputs are the arrays of the new state, sorted by name, and then those
    of the metrics, sorted by name. The file holds no state. Arrays that the step captures are constants in
    it.

    Shapes and dtypes are those of `state` and `batch`; there is one file for each shape. Nothing is
    evaluated, and only arrays that the step captures are read. The step is traced four times.

    Args:
        step: `step(state, batch) -> (state, metrics)` from `train_step`, compiled or not, `eval_step`, or
            your own pure function. A step with measurements makes all of them; pass `step.at(number)` for
            others.
        state: a state that the step receives; its values do not matter.
        batch: a batch that the step receives; its values do not matter.
        path: the file to write, such as `step.mlxfn`. Missing directories are created.

    Raises:
        ValueError: for an operation that MLX cannot write, with its name, such as a function of
            `mx.custom_function` that was made when a module was imported; for a gradient defined by a
            function that is used twice, differentiated or vmapped; for a step that reads the value of an
            array, draws random numbers without a key, changes the structure of the state, or returns metrics
            that are not a dict of arrays and `Mean`s.
        TypeError: for a leaf that is not an array, with its path.

    >>> import mlx.core as mx, purestep as ps, tempfile
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.5)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> batch = {"x": mx.array([1.0, 3.0])}
    >>> path = tempfile.mkdtemp() + "/step.mlxfn"
    >>> export(ps.train_step(loss_fn, transform), state, batch, path)
    >>> state, metrics = ps.import_step(path)(state, batch)
    >>> metrics["loss"], state.params["w"]
    (array(5, dtype=float32), array(2, dtype=float32))
    """
    checks.function(_CALLER, "step", step)
    check_arrays(_CALLER, "state", state)
    check_arrays(_CALLER, "batch", batch)
    path = check_path(_CALLER, path)
    if path.is_dir():
        raise IsADirectoryError(f"{_CALLER}: path must be a file, got the directory {path}")
    inner = step.step if isinstance(step, Compiled) else step
    found: list[Sidecar] = []

    def flat(named: dict[str, mx.array]) -> list[mx.array]:
        results, described = _called(inner, state, batch, named)
        found[:] = [described]
        return results

    try:
        made = resolved(traced(flat, names(state, batch), _CALLER), _CALLER)
    except (ValueError, RuntimeError) as error:
        clearer = reworded(error, _CALLER)
        if clearer is None:
            raise
        raise clearer from error

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.writelines(program.write(made))

    atomic.write(path, fill)
    atomic.write_text(sidecar.place(path), sidecar.text(found[0], path))


def names(state: Tree, batch: Batch) -> dict[str, mx.array]:
    """Return the arrays of a state and a batch by the names of a step's inputs."""
    return {
        tree.join(name, path): leaf
        for name, given in (("state", state), ("batch", batch))
        for path, leaf in tree.items(given)
    }


def _called(
    step: Callable[[Any, Any], Any], state: Tree, batch: Batch, named: dict[str, mx.array]
) -> tuple[list[mx.array], Sidecar]:
    arrays = [named[name] for name in names(state, batch)]
    state, batch = tree.unflatten((state, batch), arrays)
    with forbidden(f"{_CALLER}: the step", _REMEDY):
        result = step(state, batch)
    evaluation = type(result) is not tuple
    after, metrics = (None, result) if evaluation else _pair(result)
    _check_metrics(metrics)
    if not evaluation:
        lines = tree.differences(tree.spec(after), tree.spec(state), "the new state", "the old")
        if lines:
            raise checks.error(_CALLER, "step must keep the structure of the state: " + "; ".join(lines))
    described = Sidecar(
        tree.spec(state),
        tree.spec(batch),
        tree.spec(metrics),
        evaluation,
        step.steps if isinstance(step, Step) else 1,
    )
    results = {tree.join("metrics", path): leaf for path, leaf in tree.items(metrics)}
    results |= {} if evaluation else names(after, ())
    return [results[name] for name, _ in described.outputs()], described


def _pair(result: Any) -> Any:
    if len(result) != 2:
        raise checks.error(_CALLER, f"step must return (state, metrics) or metrics, got {len(result)} values")
    return result


def _check_metrics(metrics: Any) -> None:
    if not isinstance(metrics, dict):
        raise checks.error(_CALLER, f"step must return metrics in a dict, got {type(metrics).__name__}")
    for name, value in metrics.items():
        if not isinstance(value, (mx.array, Mean, MeanSum)):
            kind = type(value).__name__
            raise checks.error(_CALLER, f"metrics must be arrays or Means, got {kind} for {name}")
