"""What a callback receives, and what it may return."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import mlx.core as mx

from purestep._core import tree
from purestep._core.types import Batch, Metrics, StepFn
from purestep._loop.core.history import History
from purestep._measures.finite import nonfinite_paths


class Stop(NamedTuple):
    """A callback returns it to end the run after this step.

    >>> enough = lambda progress: Stop("an hour is over") if progress.seconds > 3600 else None

    Attributes:
        reason: a sentence for people; it becomes `FitResult.reason`.
    """

    reason: str


class Save(NamedTuple):
    """A callback returns it to save a checkpoint of this step.

    >>> early = lambda progress: Save() if progress.step in (1, 10, 100) else None

    It has no effect in a run without a checkpointer.

    Attributes:
        reason: a sentence for people.
    """

    reason: str = ""


class Run(NamedTuple):
    """The run that `on_train_begin` receives.

    Attributes:
        step: the step function of the run.
        state: the state before the first step, restored if the run is resumed.
        start: steps made before, 0 for a new run.
        steps: the number of steps at the end, or `None` if the length of the source decides.
        history: the rows so far; empty for a new run.
        log_every: the interval of rows, in steps.
        evaluation_names: the names of the evaluations.
        rank: the number of this process, 0 if it trains alone.
        ranks: the number of processes that train together.
    """

    step: StepFn
    state: Any
    start: int
    steps: int | None
    history: History
    log_every: int
    evaluation_names: tuple[str, ...] = ()
    rank: int = 0
    ranks: int = 1


class Progress(NamedTuple):
    """A run after one of its steps.

    Attributes:
        step: steps made, so 1 after the first step of a new run.
        steps: the number of steps at the end, or `None` if the length of the source decides.
        epoch: passes over the data that were begun before this step, counted from 0.
        state: the state after this step.
        batch: the batch of this step.
        metrics: the metrics of this step, 0-d arrays. Reading one may wait for the device. A step of `scan`
            makes several steps in one call: these are the means over them, but the last `learning_rate`.
        row: at every `log_every`-th step and the last one, the figures of the steps since the last row, as
            Python numbers: the mean of each metric, but the last value of `learning_rate`. Otherwise `None`.
        values: beside a row, each metric of each step since the last row, oldest first. Otherwise empty. A
            call of a step of `scan` adds a value for each of its steps; `value_steps` has its number for all.
        evaluated: after an evaluation, its figures as Python numbers, `eval_loss` for example. Otherwise
            `None`.
        texts: after an evaluation, the texts that it made, by name.
        history: all rows so far, this one included.
        samples: training examples seen so far: the sum of the batches' first axes.
        tokens: tokens seen so far, padding included: the sum of the sizes of the batches' largest integer
            array with two axes. 0 for data without tokens.
        seconds: seconds of training so far, earlier parts of a resumed run included.
        value_steps: the numbers of the steps of `values`, by the name of the metric: a measurement with
            `every=n` is not in every step.
        alone: whether no further step was sent to the device, as at the last step of a run. Otherwise the
            next step is made while callbacks run.
    """

    step: int
    steps: int | None
    epoch: int
    state: Any
    batch: Batch
    metrics: Metrics
    row: Mapping[str, float] | None
    values: Mapping[str, Sequence[float]]
    evaluated: Mapping[str, float] | None
    texts: Mapping[str, Sequence[str]]
    history: History
    samples: int
    tokens: int
    seconds: float
    value_steps: Mapping[str, Sequence[int]] = {}
    alone: bool = False


Request: TypeAlias = Stop | Save | None
"""What a callback returns: `Stop(reason)`, `Save(reason)` or nothing."""


@runtime_checkable
class Callback(Protocol):
    """Hooks of a run. Inherit from it and override some: the others do nothing.

    A plain function is a callback too: it is called as `on_step_end`.

    All hooks but `on_train_end` may return `Stop(reason)`; `on_step_end` and `on_eval_end` also
    `Save(reason)`. A `Stop` of `on_train_begin` ends the run before its first step. Hooks run between steps,
    on the thread of the loop; the device works on the next step meanwhile. A hook that raises ends the run:
    the state is saved, and the error is raised.

    If several processes train together, callbacks are called on rank 0 only, and their requests hold for all
    ranks. A callback with the attribute `all_ranks = True` is called on each rank, and a request of any rank
    holds for all.

    A callback with a memory has `state() -> dict` of plain JSON values, which is stored with each checkpoint,
    and `restore(saved)`, which receives it when the run is resumed, before `on_train_begin`.

    >>> class Announce(Callback):
    ...     def on_train_end(self, result):
    ...         print(f"{result.steps} steps: {result.reason}")
    """

    def on_train_begin(self, run: Run) -> Stop | None:
        """Receive the run before its first step."""

    def on_step_end(self, progress: Progress) -> Request:
        """Receive each step."""

    def on_eval_end(self, progress: Progress) -> Request:
        """Receive each evaluation, after `on_step_end` of the same step."""

    def on_checkpoint(self, progress: Progress) -> Request:
        """Receive each step at which a checkpoint is saved; it may still be written in the background."""

    def on_train_end(self, result: Any) -> None:
        """Receive the `FitResult`. It is called at the end of every run, also of one that failed."""

    def state(self) -> dict[str, Any]:
        """Return what the callback must remember in a resumed run, as plain JSON values."""
        return {}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Receive the `state()` of the run that is resumed."""


class Monitor(Callback):
    """A callback that adds figures to the rows of a run. Inherit from it and override `figures`.

    All callbacks of the run see them in `progress.row`: `log`, `jsonl`, trackers. The history and the
    checkpoints do not have them, since figures such as memory differ when a run is repeated.

    >>> class Hours(Monitor):
    ...     def figures(self, progress):
    ...         return {"hours": progress.seconds / 3600}
    """

    def figures(self, progress: Progress) -> Mapping[str, float]:
        """Return figures as Python numbers. Called at each row, before `on_step_end` of any callback.

        A figure that has the name of a metric is left out.
        """
        return {}


def params_of(state: Any, default: Any) -> Any:
    """Return the parameters of a state, a field or a key, or a default if it has none."""
    if isinstance(state, Mapping):
        return state.get("params", default)
    return getattr(state, "params", default)


def nonfinite_params(state: Any, default: Any) -> list[str]:
    """Return the paths of the parameters that are not finite.

    The members of a population do not influence each other: while those of one member are finite, so is the
    population. Waits for the device.

    Args:
        state: a state; the steps of a population are an array of shape [members].
        default: the parameters of a state that has none.
    """
    params = params_of(state, default)
    paths = nonfinite_paths(params)
    return [] if paths and _has_finite_member(state, params) else paths


def _has_finite_member(state: Any, params: Any) -> bool:
    step = state.get("step") if isinstance(state, Mapping) else getattr(state, "step", None)
    leaves = [leaf for leaf in tree.leaves(params) if isinstance(leaf, mx.array)]
    if not isinstance(step, mx.array) or step.ndim != 1 or not step.size:
        return False
    if any(leaf.shape[:1] != step.shape for leaf in leaves):
        return False
    finite = [mx.isfinite(leaf.reshape(step.size, -1)).all(axis=1) for leaf in leaves]
    return bool(mx.stack(finite).all(axis=0).any().item())


def broken(
    state: Any, values: Mapping[str, Sequence[float]], steps: Mapping[str, Sequence[int]]
) -> str | None:
    """Return a sentence if training is broken: a metric and the parameters are not finite.

    A step with a NaN that a transform skipped leaves finite parameters, and training goes on.

    Args:
        state: the state after the last step.
        values: metrics of some steps, by name.
        steps: the numbers of these steps, by the name of the metric.
    """
    found = [
        (step, name)
        for name, numbers in values.items()
        for step, value in zip(steps[name], numbers, strict=True)
        if value - value != 0.0  # NaN or an infinity
    ]
    if not found:
        return None
    paths = nonfinite_params(state, state)
    if not paths:
        return None
    first, name = min(found)
    return f"{name} is not finite at step {first}; the first parameter that is not finite is {paths[0]}"
