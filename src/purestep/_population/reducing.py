"""Metrics of members reduced to 0-d metrics, and means of members over a whole data set."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Batch, EvalStepFn, Metrics, Source, StepFn
from purestep._population.members import count_of
from purestep._steps.compile import Compiled
from purestep._steps.evaluate import evaluate as evaluate_one
from purestep._steps.step import Parts, Step, around

_CALLER = "populations.reduced"
Reduce = Callable[[str, mx.array], Mapping[str, mx.array]]


def summary(name: str, values: mx.array) -> dict[str, mx.array]:
    """Return the mean, the smallest and the largest value of the members whose value is finite.

    They are NaN if no member has a finite value.

    Args:
        name: of the metric.
        values: [members].

    >>> summary("loss", mx.array([1.0, float("nan"), 3.0]))["loss_min"]
    array(1, dtype=float32)
    """
    values = values.astype(mx.float32)
    finite = mx.isfinite(values)
    count = finite.sum()
    none = mx.where(count > 0, 0.0, mx.nan)
    kept = partial(mx.where, finite, values)
    return {
        name: kept(mx.array(0.0)).sum() / mx.maximum(count, 1) + none,
        f"{name}_min": kept(mx.array(mx.inf)).min() + none,
        f"{name}_max": kept(mx.array(-mx.inf)).max() + none,
    }


def by_member(name: str, values: mx.array) -> dict[str, mx.array]:
    """Return one metric for each member: `loss.0`, `loss.1`, ...

    Args:
        name: of the metric.
        values: [members].

    >>> by_member("loss", mx.array([1.0, 3.0]))
    {'loss.0': array(1, dtype=float32), 'loss.1': array(3, dtype=float32)}
    """
    return {f"{name}.{index}": values[index] for index in range(values.shape[0])}


def reduced(step: StepFn, reduce: Reduce = summary) -> Step:
    """Build the step of a population with 0-d metrics, as `run`, `fit` and trackers expect them.

    Args:
        step: from `population`.
        reduce: `reduce(name, values [members]) -> metrics`, called for each metric. The default `summary`
            gives the mean, `_min` and `_max` over the members with a finite value; so a member whose loss is
            NaN does not end a run of `fit`. `by_member` gives each value.

    Raises:
        TypeError: on a call, if `reduce` does not return a dict of 0-d arrays.
        ValueError: on a call, if two metrics get the same name, or a metric has no axis of members.

    >>> import purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.1)
    >>> make = lambda seed: ps.TrainState.create({"w": mx.array(float(seed))}, transform)
    >>> states = ps.populations.create(make, [1, 3])
    >>> step = reduced(ps.population(ps.train_step(loss_fn, transform)))
    >>> states, metrics = step(states, {"x": mx.array([0.0])})
    >>> metrics["loss"], metrics["loss_max"]
    (array(5, dtype=float32), array(9, dtype=float32))
    """
    checks.function(_CALLER, "step", step)
    checks.function(_CALLER, "reduce", reduce)
    given: Any = step.step if isinstance(step, Compiled) else step
    if not isinstance(given, Step):
        return Step(partial(_of_function, given, reduce))
    made = around(given, partial(_parts, reduce), transform=given.transform)  # type: ignore[arg-type]
    made.steps = given.steps
    return made


def _parts(reduce: Reduce, step: Step, states: Any, batch: Batch) -> Parts:
    made = step.parts(states, batch)
    return made._replace(metrics=_reduced(reduce, made.metrics))


def _of_function(step: Any, reduce: Reduce, states: Any, batch: Batch) -> Parts:
    states, metrics = step(states, batch)
    return Parts(states, _reduced(reduce, metrics), {}, {})


def _reduced(reduce: Reduce, metrics: Metrics) -> Metrics:
    found: Metrics = {}
    for name, values in metrics.items():
        if values.ndim != 1:
            rule = f"the metric {name} must have shape [members]"
            raise checks.error(_CALLER, f"{rule}, got {values.shape}")
        made = reduce(name, values)
        if not isinstance(made, Mapping):
            raise TypeError(
                f"{_CALLER}: reduce must return a dict of metrics, got {type(made).__name__} for {name}"
            )
        for own, value in made.items():
            if not isinstance(value, mx.array) or value.ndim:
                got = f"shape {value.shape}" if isinstance(value, mx.array) else type(value).__name__
                raise TypeError(f"{_CALLER}: reduce must return 0-d arrays, got {got} for {own}")
            if own in found:
                raise checks.error(_CALLER, f"reduce gives two metrics the name {own}")
            found[own] = value
    return found


def evaluate(
    eval_step: EvalStepFn,
    states: Any,
    source: Source | Iterable[Batch],
    *,
    steps: int | None = None,
) -> list[dict[str, float]]:
    """Measure every member on every batch of a source; return the exact means of each, as `ps.evaluate`.

    Args:
        eval_step: `population(ps.eval_step(loss_fn))`, compiled or not.
        states: the population.
        source: as in `ps.evaluate`.
        steps: as in `ps.evaluate`.

    Returns:
        One dict of floats for each member.

    >>> import purestep as ps
    >>> loss_fn = lambda params, batch, rng: ps.Mean.of(mx.square(params["w"] - batch["x"]))
    >>> make = lambda seed: ps.TrainState.create({"w": mx.array(float(seed))}, ps.optimizers.sgd(0.1))
    >>> states = ps.populations.create(make, [0, 2])
    >>> found = evaluate(ps.population(ps.eval_step(loss_fn)), states, [{"x": mx.array([1.0, 2.0])}])
    >>> [each["loss"] for each in found]
    [2.5, 0.5]
    """
    checks.function("populations.evaluate", "eval_step", eval_step)
    count = count_of("populations.evaluate", "states", states)
    held: list[dict[str, Any]] = []

    def first(states: Any, batch: Batch) -> Any:
        means = eval_step(states, batch)
        if not isinstance(means, Mapping) or any(
            leaf.shape != (count,) for leaf in tree.leaves(means) if isinstance(leaf, mx.array)
        ):
            raise checks.error(
                "populations.evaluate",
                f"eval_step must return a mean of each of the {count} members, as "
                "population(eval_step(loss_fn)) does, got another result",
            )
        held.append(dict(means))
        return _of_member(means, 0)

    found = [evaluate_one(first, states, source, steps=steps)]
    for index in range(1, count):
        found.append(evaluate_one(lambda _, means, index=index: _of_member(means, index), states, held))
    return found


def _of_member(means: dict[str, Any], index: int) -> Any:
    return tree.map(lambda values: values[index], means)
