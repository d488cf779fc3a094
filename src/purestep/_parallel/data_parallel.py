"""A training step over the rows of several processes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx

from purestep._core import checks
from purestep._core.packing import shards_in
from purestep._core.rng import scope
from purestep._core.types import Batch, LossFn
from purestep._parallel.agreement import agree, agree_on_lines
from purestep._parallel.groups import group_of
from purestep._steps.core import tracing
from purestep._steps.core.measuring import Measurement
from purestep._steps.core.ranks.summing import Ranks
from purestep._steps.state import TrainState
from purestep._steps.step import Parts, Step, around
from purestep._steps.train import step_for
from purestep._transforms.core.base import GradientTransform

_CALLER = "data_parallel"
_DTYPES = (mx.float32, mx.bfloat16, mx.float16)


def data_parallel(
    loss_fn: LossFn,
    transform: GradientTransform,
    *,
    group: mx.distributed.Group | None = None,
    microbatches: int = 1,
    stateful: bool = False,
    measure: Sequence[Measurement] = (),
    reduce_dtype: mx.Dtype = mx.float32,
) -> Step:
    """Build a `train_step` that several processes compute together, each on rows of its own.

    Start the processes with `mlx.launch`. Every process builds the same state and calls the step with its own
    rows of the batch. Each one then receives the state and the metrics that `train_step` would give for all
    rows together; parameters, optimizer state and metrics have the same bits on all ranks. Ranks are merged
    as microbatches are, with the weight of the loss over the rows of each, so ragged batches are exact. A
    plain scalar, as the loss or a metric, has the same weight on each rank.

    The step sums gradients as one vector for each dtype. Before that, one small sum carries the loss, the
    weights, the metrics and the model_state. The gradients of parameters from `ps.packed` are
    joined and scaled at once, by one kernel on CUDA.

    Random numbers in the loss function differ by rank: the key is `rng.fold_in(key, rank)`. Those of the
    transform are equal on all ranks. Statistics of the layers that a measurement records are merged over all
    ranks. A measurement that evaluates the loss on the batch sees the rows of its rank, and its results are
    averaged over the ranks.

    The first call compares the state between the ranks and raises an error that names the first path that
    differs; `ps.parallel.check` does so at any time. It also compares what the ranks will sum, such as the
    names of the metrics. In a group of one process the step is `train_step`, bit for bit. The step cannot be
    differentiated: no gradient flows from one rank to another.

    Args:
        loss_fn: as in `train_step`. A loss that needs the whole batch, such as a contrastive loss, raises an
            error.
        transform: as in `train_step`. It receives the gradient of all rows, in float32.
        group: the processes; `None` for all processes that were launched together.
        microbatches: as in `train_step`: the rows of each rank are cut into this many parts.
        stateful: as in `train_step`. Floating-point arrays of the new model_state are averaged over the
            ranks. Running variances so leave out the differences of the means between ranks. Every rank
            keeps its own other arrays.
        measure: as in `train_step`.
        reduce_dtype: the dtype in which gradients are summed over the ranks: float32, bfloat16 or float16.
            Reduced dtypes halve the traffic and round each rank's part of the mean.

    Raises:
        ValueError, TypeError: as in `train_step`; on the first call, if the states of the ranks differ, or
            what they sum; for an optimizer state in parts, of `sharded`; in a gradient through the step.

    >>> import purestep as ps
    >>> loss_fn = lambda params, batch, rng: ps.Mean.of(mx.square(params["w"] - batch["x"]))
    >>> transform = ps.optimizers.sgd(0.5)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> step = ps.compiled(ps.data_parallel(loss_fn, transform))
    >>> state, metrics = step(state, {"x": mx.array([1.0, 3.0])})  # this rank's rows
    >>> state.params["w"], metrics["loss"]
    (array(2, dtype=float32), array(5, dtype=float32))
    """
    processes = group_of(_CALLER, group)
    check_reduce_dtype(_CALLER, reduce_dtype)
    size = processes.size()
    options = {"microbatches": microbatches, "stateful": stateful, "reduce_dtype": reduce_dtype}
    agree_on_sums = agreeing_once(_CALLER, options, measure, processes)
    ranks = None
    if size > 1:
        ranks = Ranks(processes, size, processes.rank(), reduce_dtype, agree=agree_on_sums)
    inner = step_for(
        _CALLER,
        loss_fn,
        transform,
        microbatches=microbatches,
        stateful=stateful,
        measure=measure,
        ranks=ranks,
    )
    return inner if ranks is None else agreeing(_CALLER, inner, transform, processes)


def check_reduce_dtype(caller: str, value: Any) -> None:
    """Refuse a value that is not a floating-point dtype."""
    if value not in _DTYPES:
        raise checks.error(caller, f"reduce_dtype must be float32, bfloat16 or float16, got {value!r}")


def agreeing_once(
    caller: str, options: Mapping[str, Any], measure: Sequence[Measurement], group: mx.distributed.Group
) -> Callable[[Sequence[str]], None]:
    """Return a function that compares what the ranks sum, at its first call."""
    known = False

    def agree_on_sums(lines: Sequence[str]) -> None:
        nonlocal known
        if not known:
            given = [f"{name}={value}" for name, value in options.items()]
            names = [f"the measurement {each.name!r} every {each.every} steps" for each in measure]
            agree_on_lines(caller, "the step", [caller, *given, *names, *lines], group)
            known = True

    return agree_on_sums


def agreeing(caller: str, inner: Step, transform: GradientTransform, group: mx.distributed.Group) -> Step:
    """Return the step, whose first call compares the state between the ranks."""
    known = False

    def starting(state: TrainState) -> None:
        nonlocal known
        if not known and not tracing.is_traced(state):
            _check_parts(caller, state, transform)
            agree(caller, state, group)
            known = True

    def parts(step: Step, state: TrainState, batch: Batch) -> Parts:
        starting(state)
        return step.parts(state, batch)

    return around(inner, parts, transform=transform, starting=starting, group=group)


def _check_parts(caller: str, state: TrainState, transform: GradientTransform) -> None:
    """Refuse a whole optimizer state in place of one in parts, and the other way round."""
    if not isinstance(state, TrainState):
        return
    if caller != _CALLER:
        with scope(mx.random.key(0)):
            wanted = any(shards_in(transform.init(state.params)))
        if wanted and not any(shards_in(state.opt_state)):
            raise checks.error(
                caller,
                "state.opt_state must hold the part of this rank, got a whole one; create the state with "
                "TrainState.create(params, step.transform), or use ps.parallel.divided(state, step)",
            )
    elif any(shards_in(state.opt_state)):
        raise checks.error(
            caller,
            "state.opt_state must be whole, got a part from sharded; use ps.parallel.gathered(state)",
        )
