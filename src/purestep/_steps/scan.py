"""`scan`: several steps in one call."""

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Batch, Metrics, StepFn, Tree
from purestep._steps.compile import Compiled
from purestep._steps.core.batches import after
from purestep._steps.state import check_arrays
from purestep._steps.step import Parts, Step

_CALLER = "scan"
_Steps = tuple[Callable[[Any, Any], Any], ...]


def scan(step: StepFn, k: int) -> Step:
    """Build the function that makes `k` steps in one call, each with a batch of its own.

    `scan(step, k)(state, batches) -> (state, metrics)` equals `k` calls of `step` bit for bit: parameters,
    optimizer state, random key and step counter. Step i receives row i of every array of `batches`, and
    starts after step i - 1 has ended, so that the activations of one step are in memory at a time.

    The steps are unrolled. `compiled(scan(step, k))` makes one trace, which holds `k` copies of the step and
    takes `k` times as long to compile. `scan(compiled(step), k)` compiles one step and calls it `k` times.
    MLX fuses fewer operations within an unrolled step, so on a CPU a loop of single steps is faster.

    Args:
        step: `step(state, batch) -> (state, metrics)`, from `train_step` or another builder, from `compiled`,
            from `scan` itself, or your own pure function.
        k: the number of steps in one call, at least 1.

    Returns:
        A `Step`. Its arguments are the state and `batches`, a tree like one batch whose arrays have a new
        first axis of length `k`; `data.stacked` makes a source of them. Each metric is stacked along a new
        first axis of length `k`; metrics that are not 0-d are stacked too. A metric that only some of the
        steps have, such as a measurement with `every`, has one row for each step that has it, in order.

        `at(number)` takes the number of calls made before, as `run` counts them: measurements are due after
        `number * k + i` steps. Each pattern of due measurements is a trace of its own, so let `every` be a
        multiple of `k`. `parts` returns gradients and updates stacked in the same way; it needs a `Step`.

    Raises:
        TypeError, ValueError: if `k` is not an integer of at least 1; on a call, before any step is made, if
            `batches` holds no array or one without a first axis of length `k`; if a metric is not an array or
            its shape or dtype differs between steps. The error names the path.

    >>> import purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.25)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> step = scan(ps.train_step(loss_fn, transform), 3)
    >>> state, metrics = step(state, {"x": mx.array([[2.0], [2.0], [6.0]])})
    >>> state.step, metrics["loss"]
    (array(3, dtype=int32), array([4, 1, 20.25], dtype=float32))
    """
    checks.function(_CALLER, "step", step)
    k = checks.integer(_CALLER, "k", k, least=1)
    chosen: dict[tuple[int, ...], Step] = {}  # by the `id`s of steps that `step` keeps

    def choose(number: int) -> Step | None:
        if not isinstance(step, (Step, Compiled)):
            return None
        due = tuple(step.at(number * k + index) for index in range(k))
        if all(each is step for each in due):
            return None
        key = tuple(map(id, due))
        if key not in chosen:
            chosen[key] = _Scan(due, None)
        return chosen[key]

    return _Scan((step,) * k, choose)


class _Scan(Step):
    """The steps of one call."""

    def __init__(self, steps: _Steps, choose: Callable[[int], Step | None] | None):
        parts = partial(_parts, steps)
        first: Any = steps[0]
        first = first.step if isinstance(first, Compiled) else first
        known = first if isinstance(first, Step) else Step(parts)
        super().__init__(
            parts,
            transform=known.transform,
            choose=choose,
            steps=len(steps) * known.steps,
            starting=known.starting,
            group=known.group,
        )
        self._steps = steps

    def __call__(self, state: Any, batch: Batch) -> tuple[Any, Metrics]:
        return _made(self._steps, state, batch)


def _made(steps: _Steps, state: Any, batches: Batch) -> tuple[Any, Metrics]:
    """Make all steps; return the last state and the stacked metrics."""
    made: list[Metrics] = []
    for index, step in enumerate(steps):
        batch = _row(batches, index, len(steps), (state, made[-1:]))
        returned: Any = step(state, batch)
        if not isinstance(returned, (tuple, list)) or len(returned) != 2:
            raise TypeError(f"{_CALLER}: step must return (state, metrics), got {type(returned).__name__}")
        state, metrics = returned
        _check_metrics(metrics)
        made.append(metrics)
    return state, _stacked_metrics(made)


def _parts(steps: _Steps, state: Any, batches: Batch) -> Parts:
    """Make all steps; return the last state, and everything else stacked."""
    made: list[Parts] = []
    for index, step in enumerate(steps):
        if not isinstance(step, Step):
            kind = type(step).__name__
            raise TypeError(f"{_CALLER}: parts needs a Step, as train_step returns, got a {kind}")
        batch = _row(batches, index, len(steps), [(each.state, each.metrics) for each in made[-1:]])
        made.append(step.parts(state, batch))
        _check_metrics(made[-1].metrics)
        state = made[-1].state
    gradients, updates = (
        tree.map(_rows, *trees)
        for trees in zip(*((each.gradients, each.updates) for each in made), strict=True)
    )
    return Parts(state, _stacked_metrics([each.metrics for each in made]), gradients, updates)


def _row(batches: Batch, index: int, k: int, before: Tree) -> Batch:
    """Return the batch of one step; it is computed only after `before`."""
    if index == 0:
        _check_batches(batches, k)
        return tree.map(lambda leaf: leaf[0], batches)
    return after(tree.map(lambda leaf: leaf[index], batches), before)


def _check_batches(batches: Batch, k: int) -> None:
    check_arrays(_CALLER, "batches", batches)
    if not tree.leaves(batches):
        raise checks.error(_CALLER, "batches must hold at least one array, got none")
    for path, leaf in tree.items(batches):
        if leaf.ndim == 0 or leaf.shape[0] != k:
            shown = tree.join("batches", path)
            raise checks.error(
                _CALLER, f"{shown} must have a first axis of length k={k}, got shape {leaf.shape}"
            )


def _check_metrics(metrics: Any) -> None:
    if type(metrics) is not dict:
        kind = type(metrics).__name__
        raise TypeError(f"{_CALLER}: step must return a dict of metrics, got {kind}")
    check_arrays(_CALLER, "metrics", metrics)


def _stacked_metrics(made: list[Metrics]) -> Metrics:
    names = dict.fromkeys(name for metrics in made for name in metrics)
    return {name: _stacked(name, [each[name] for each in made if name in each]) for name in names}


def _stacked(name: str, values: list[Any]) -> Any:
    for value in values[1:]:
        if not tree.matches(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, values[0], value):
            lines = tree.differences(tree.spec({name: value}), tree.spec({name: values[0]}), "one", "another")
            raise checks.error(_CALLER, f"a metric must be alike in all steps: {lines[0]} step")
    return tree.map(_rows, *values)


def _rows(*rows: mx.array) -> mx.array:
    return mx.stack(list(rows))
