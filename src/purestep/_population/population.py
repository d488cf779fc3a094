"""`population`: one step that trains all members of a population."""

from collections.abc import Callable
from functools import partial
from typing import Any, overload

from purestep._core import checks, tree
from purestep._core.types import Batch, EvalStepFn, StepFn
from purestep._population.mapping import mapped
from purestep._population.members import count_of
from purestep._steps.compile import Compiled
from purestep._steps.state import check_arrays
from purestep._steps.step import Parts, Step
from purestep._transforms.core.base import GradientTransform, taking_extra

_CALLER = "population"


@overload
def population(step: EvalStepFn, *, shared_batch: bool = True, chunk: int | None = None) -> EvalStepFn: ...
@overload
def population(step: StepFn, *, shared_batch: bool = True, chunk: int | None = None) -> Step: ...
def population(step: Any, *, shared_batch: bool = True, chunk: int | None = None) -> Any:
    """Build the step that makes one step of every member of a population.

    The state is a population: a state whose arrays have a new first axis, of members, as
    `populations.create` and `populations.stacked` make it. Each member has its own parameters, random key and
    hyperparameters. Compile the result: `compiled(population(step))`. Another number of members is another
    trace.

    Members do not influence each other: a member whose loss is NaN leaves the others as they are. A member
    equals the same state trained alone up to rounding, since MLX sums products of several members in another
    order. With `chunk=1` it equals that state bit for bit, uncompiled.

    Args:
        step: `step(state, batch) -> (state, metrics)` for one member, from `train_step` or another builder,
            `scan` included, or your own pure function. A compiled step is traced anew. A step of `eval_step`
            works too.
        shared_batch: all members receive the same batch. Otherwise the arrays of a batch have a first axis of
            members.
        chunk: the number of members that are computed at a time; each chunk starts after the one before has
            ended, so that the activations of one chunk are in memory. The last chunk may be smaller. `None`
            is all members. With 1, members are computed without `mx.vmap`, which some of MLX's operations do
            not support.

    Returns:
        A `Step` whose arrays all have a first axis of members: the new state, and each metric. Its `at` and
        `parts` are those of `step`, for all members. For a step of `eval_step`, each `Mean` has a total and
        a weight for each member.

    Raises:
        TypeError, ValueError: if `chunk` is not an integer of at least 1; on a call, before anything is
            computed, for a state or a batch of which an array has no first axis of members, with the path;
            for a result that is not an array; for an operation that MLX cannot map.

    >>> import mlx.core as mx, purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.1)
    >>> make = lambda seed: ps.TrainState.create({"w": mx.array(0.0)}, transform, seed=seed)
    >>> states = ps.populations.create(make, range(2), learning_rate=[0.25, 0.5])
    >>> states, metrics = population(ps.train_step(loss_fn, transform))(states, {"x": mx.array([2.0])})
    >>> states.params["w"], metrics["loss"]
    (array([1, 2], dtype=float32), array([4, 4], dtype=float32))
    """
    checks.function(_CALLER, "step", step)
    if not isinstance(shared_batch, bool):
        raise TypeError(f"{_CALLER}: shared_batch must be True or False, got {shared_batch!r}")
    if chunk is not None:
        chunk = checks.integer(_CALLER, "chunk", chunk, least=1)
    return _Population(step.step if isinstance(step, Compiled) else step, shared_batch, chunk)


class _Population(Step):
    """A step of all members."""

    def __init__(self, step: Callable[[Any, Any], Any], shared: bool, chunk: int | None):
        chosen: dict[int, Step] = {}  # by the `id` of a step that `step` keeps

        def choose(number: int) -> Step | None:
            due = step.at(number) if isinstance(step, Step) else step
            if due is step:
                return None
            if id(due) not in chosen:
                chosen[id(due)] = _Population(due, shared, chunk)
            return chosen[id(due)]

        self._each = partial(_made, step, shared, chunk)
        transform = getattr(step, "transform", None)
        super().__init__(
            partial(_parts, step, shared, chunk),
            transform=None if transform is None else _mapped_transform(transform),
            choose=choose,
            steps=step.steps if isinstance(step, Step) else 1,
            starting=step.starting if isinstance(step, Step) else None,
        )

    def __call__(self, state: Any, batch: Batch) -> Any:
        """Return the results of the step for every member."""
        return self._each(state, batch)


def _made(step: Callable[[Any, Any], Any], shared: bool, chunk: int | None, state: Any, batch: Batch) -> Any:
    count = count_of(_CALLER, "state", state)
    check_arrays(_CALLER, "batch", batch)
    if shared:
        return mapped(_CALLER, step, count, chunk, [state], [batch])
    _check_batch(batch, count)
    return mapped(_CALLER, step, count, chunk, [state, batch], [])


def _parts(step: Any, shared: bool, chunk: int | None, state: Any, batch: Batch) -> Parts:
    if not isinstance(step, Step):
        kind = type(step).__name__
        raise TypeError(f"{_CALLER}: parts needs a Step, as train_step returns, got a {kind}")
    return _made(step.parts, shared, chunk, state, batch)


def _check_batch(batch: Batch, count: int) -> None:
    for path, leaf in tree.items(batch):
        shown = tree.join("batch", path)
        if leaf.ndim == 0 or leaf.shape[0] != count:
            rule = f"{shown} must have one row for each of the {count} members with shared_batch=False"
            raise checks.error(_CALLER, f"{rule}, got shape {leaf.shape}")


def _mapped_transform(transform: GradientTransform) -> GradientTransform:
    """Return the transform over all members; other arguments of `update` are shared."""

    def init(params: Any) -> Any:
        count = count_of(_CALLER, "params", params)
        return mapped(_CALLER, transform.init, count, None, [params], [])

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        def each(updates: Any, state: Any, params: Any, extra: Any) -> Any:
            return taking_extra(transform)(updates, state, params, **extra)

        count = count_of(_CALLER, "updates", updates)
        return mapped(_CALLER, each, count, None, [updates, state, params], [extra])

    return GradientTransform(init, update)
