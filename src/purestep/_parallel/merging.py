"""Evaluation over the rows of several processes."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.mean import Mean, MeanSum
from purestep._core.tracing import ordering
from purestep._core.types import Batch, EvalStepFn
from purestep._parallel.agreement import agree_on_lines
from purestep._parallel.groups import group_of
from purestep._steps.core import tracing
from purestep._steps.state import TrainState


def merged(eval_step: EvalStepFn, *, group: mx.distributed.Group | None = None) -> EvalStepFn:
    """Return an evaluation step whose means are those over the rows of all ranks.

    Each rank calls it with rows of its own, the same number of times. Compile the result, not `eval_step`.
    The first call compares the names of the results between the ranks.

    Args:
        eval_step: `eval_step(state, batch) -> {"loss": Mean, ...}`, as from `ps.eval_step`.
        group: the processes; `None` for all of them.

    Raises:
        TypeError: on the first call, if a result is not a `Mean` or a sum of `Mean`s.
        ValueError: on the first call, if the ranks have other results, or none.

    >>> import purestep as ps
    >>> loss_fn = lambda params, batch, rng: ps.Mean.of(mx.square(params["w"] - batch["x"]))
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, ps.identity())
    >>> ps.evaluate(merged(ps.eval_step(loss_fn)), state, [{"x": mx.array([1.0, 3.0])}])["loss"]
    5.0
    """
    caller = "merged"
    checks.function(caller, "eval_step", eval_step)
    processes = group_of(caller, group)
    if processes.size() == 1:
        return eval_step
    evaluated: Callable[[Any, Batch], Any] = eval_step
    known = False

    def starting(state: Any) -> None:
        if not known and not tracing.is_traced(state):
            mx.eval(state)  # first the sums of the step that made it: a rank may have them yet to compute

    def measured(state: Any, batch: Batch) -> dict[str, Mean | MeanSum]:
        nonlocal known
        starting(state)
        means = evaluated(state, batch)
        for name, mean in means.items():
            if not isinstance(mean, (Mean, MeanSum)):
                raise TypeError(
                    f"{caller}: eval_step must return Means, got a {type(mean).__name__} {name!r}"
                )
        names = sorted(means)  # equal dicts may list their keys in another order on another rank
        ordered = [means[name] for name in names]
        if not known:
            lines = [
                f"{name!r} of {len(tree.leaves(mean))} numbers"
                for name, mean in zip(names, ordered, strict=True)
            ]
            agree_on_lines(caller, "the results", lines, processes)
            known = True
        if not means:
            raise checks.error(caller, "eval_step must return at least one Mean, got none")
        numbers = [number.astype(mx.float32) for number in tree.leaves(ordered)]
        if isinstance(state, TrainState):  # after all sums of the step that made the state
            numbers = ordering.after(numbers, [state.rng])
        total = mx.distributed.all_sum(mx.stack(numbers), group=processes)
        whole = dict(zip(names, tree.unflatten(ordered, list(total)), strict=True))
        return {name: whole[name] for name in means}

    measured.starting = starting  # type: ignore[attr-defined]
    return measured
