"""Evaluation: `eval_step(state, batch) -> metrics`, and the means over a whole data set."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import AnyMean, Mean, MeanSum, map_terms
from purestep._core.rng import check_key, fold_in, forbidden
from purestep._core.types import Batch, EvalStepFn, LossFn, Source
from purestep._steps.core.batches import check_batch
from purestep._steps.core.outcome import check_loss_fn, keyless, outcome_of
from purestep._steps.state import TrainState, check_state

_EVALUATION = 0x6576  # folded into the state's key, so that the key differs from those of training
_REMEDY = "pass rng= to eval_step and draw from the rng of loss_fn, or draw nothing in evaluation"


def eval_step(
    loss_fn: LossFn, *, stateful: bool = False, rng: mx.array | str | None = None
) -> Callable[[TrainState, Batch], dict[str, AnyMean]]:
    """Build the pure function that evaluates a state on one batch.

    Without `rng`, `loss_fn` receives `None` for its key. An `apply` made by `functional` then runs in
    evaluation mode, and random numbers drawn without a key raise an error.

    Args:
        loss_fn: as in `train_step`.
        stateful: as in `train_step`; the returned model_state is dropped.
        rng: the key that `loss_fn` receives, for a model that also draws in evaluation, such as a VAE: a key,
            uint32 [2], the same for every batch, or `"state"` for a key computed from `state.rng`. An `apply`
            that receives the key runs in training mode unless it gets `train=False`. `None`: no key.

    Returns:
        A function `step(state, batch)` that returns a dict of `loss` and the loss function's metrics. Each is
        a `Mean`, or a `MeanSum` for a sum of means, so that batches merge to the exact mean over all of them.

    Raises:
        ValueError, TypeError: as `train_step`; also for random numbers drawn without a key if `rng` is
            `None`.

    >>> import mlx.core as mx, purestep as ps
    >>> loss_fn = lambda params, batch, rng: ps.Mean.of(mx.square(params["w"] - batch["x"]))
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, ps.optimizers.sgd(0.5))
    >>> eval_step(loss_fn)(state, {"x": mx.array([1.0, 3.0])})
    {'loss': Mean(total=array(10, dtype=float32), weight=array(2, dtype=float32))}
    """
    caller = "eval_step"
    check_loss_fn(caller, loss_fn, stateful=stateful)
    if isinstance(rng, str):
        checks.one_of(caller, "rng", rng, ("state",))
    elif rng is not None:
        check_key(caller, rng)

    def step(state: TrainState, batch: Batch) -> dict[str, AnyMean]:
        check_state(caller, state)
        check_batch(caller, batch)
        key = fold_in(state.rng, _EVALUATION) if isinstance(rng, str) else rng
        with forbidden(f"{caller}: loss_fn", _REMEDY) if key is None else keyless(key):
            outcome = outcome_of(
                caller, loss_fn, state.params, state.model_state, batch, key, stateful=stateful
            )
        if "loss" in outcome.metrics:
            raise checks.error(caller, "loss_fn's metrics may not be named loss")
        # The addition works around mx.compile, which loses one of two equal stop_gradients among its outputs
        # ("_Map_base::at"), such as the weights of a loss and a metric over the same tokens.
        means = {"loss": outcome.loss, **outcome.metrics}
        return {
            name: map_terms(lambda term: Mean(term.total, term.weight + 0.0), mean)
            for name, mean in means.items()
        }

    return step


def evaluate(
    eval_step: EvalStepFn,
    state: Any,
    source: Source | Iterable[Batch],
    *,
    steps: int | None = None,
    perplexity: bool = False,
) -> dict[str, float]:
    """Measure a state on every batch of a source and return the exact means over all of them.

    Totals and weights are summed in float64 and divided once. Batches with more real tokens count more, as if
    all data were one batch. At most two batches are in memory at a time.

    Args:
        eval_step: `eval_step(state, batch) -> {"loss": Mean, ...}`, from `ps.eval_step`, compiled or not.
        state: the state to measure; it is not changed.
        source: an iterable of batches, or an object with `at(step) -> batch`, which needs `steps`.
        steps: the number of batches, starting with `at(0)`. For an iterable it is the largest number, and
            `None` means all batches.
        perplexity: add `perplexity`, `exp(loss)`. It is meaningful only for a loss in nats per token.

    Returns:
        A dict of Python floats with `loss`; every other metric, each over its own weight (0.0 if the weight
        is 0); `weight`, the total weight of the loss, or of its first term for a sum of means; and
        `perplexity` if requested, which is `inf` for a loss above 709.78 and NaN for a loss that is NaN.

    Raises:
        ValueError: if the source has no batch (an iterator may be exhausted); if the total weight of the loss
            is 0; if the source is not iterable and `steps` is not given.
        TypeError: if the source or the results of `eval_step` have another type.

    >>> import purestep as ps
    >>> loss_fn = lambda params, batch, rng: ps.Mean.of(batch["losses"], batch["real"])
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, ps.optimizers.sgd(0.5))
    >>> batches = [{"losses": mx.array([1.0, 2.0]), "real": mx.array([1, 1])},
    ...            {"losses": mx.array([6.0, 0.0]), "real": mx.array([1, 0])}]
    >>> evaluate(ps.eval_step(loss_fn), state, batches)
    {'loss': 3.0, 'weight': 3.0}
    """
    caller = "evaluate"
    checks.function(caller, "eval_step", eval_step)
    sums: dict[str, list[tuple[float, float]]] = {}
    for means in _one_behind(eval_step(state, batch) for batch in _batches(caller, source, steps)):
        _check_means(caller, means, sums)
        for name, mean in means.items():
            terms = mean.terms if isinstance(mean, MeanSum) else (mean,)
            before = sums.setdefault(name, [(0.0, 0.0)] * len(terms))
            if len(before) != len(terms):
                raise checks.error(
                    caller,
                    f"{name} must be a sum of the same number of means for every batch, "
                    f"got {len(before)} and {len(terms)}",
                )
            sums[name] = [
                (total + _as_float(term.total), weight + _as_float(term.weight))
                for (total, weight), term in zip(before, terms, strict=True)
            ]
    if not sums:
        raise checks.error(caller, "source must hold at least one batch, got none")
    weight = sums["loss"][0][1]
    if weight == 0:
        raise checks.error(caller, "source must have a loss of weight above 0, got weight 0")
    means = {
        name: sum(total / weight if weight else 0.0 for total, weight in terms)
        for name, terms in sums.items()
    }
    measured = {**means, "weight": weight}
    return {**measured, "perplexity": _exp(means["loss"])} if perplexity else measured


def _batches(caller: str, source: Any, steps: int | None) -> Iterator[Batch]:
    if isinstance(source, (dict, mx.array)):  # a dict would yield its names, and an array has `at`
        raise TypeError(f"{caller}: source must be an iterable of batches, got one batch; write [batch]")
    if steps is not None:
        steps = checks.integer(caller, "steps", steps, least=1)
    if steps is not None and hasattr(source, "at"):
        return (source.at(step) for step in range(steps))
    if isinstance(source, Iterable):
        return islice(source, steps)
    if hasattr(source, "at"):
        raise checks.error(caller, "steps must be given for a source with at(step), got None")
    raise TypeError(f"{caller}: source must be iterable or have at(step), got {type(source).__name__}")


def _one_behind(results: Iterator[dict[str, AnyMean]]) -> Iterator[dict[str, AnyMean]]:
    """Start computing each result, and yield it after the next one has started: the device never waits."""
    before = None
    for result in results:
        mx.async_eval(result)
        if before is not None:
            yield before
        before = result
    if before is not None:
        yield before


def _check_means(caller: str, means: Any, sums: dict[str, Any]) -> None:
    if not isinstance(means, dict) or not all(isinstance(mean, (Mean, MeanSum)) for mean in means.values()):
        raise TypeError(f"{caller}: eval_step must return a dict of Means, got {means!r}")
    if "loss" not in means:
        raise checks.error(caller, f"eval_step must return a loss, got {', '.join(means) or 'nothing'}")
    taken = sorted(means.keys() & {"weight", "perplexity"})
    if taken:
        raise checks.error(caller, f"metrics may not be named {', '.join(taken)}")
    if sums and means.keys() != sums.keys():
        raise checks.error(
            caller, f"every batch must give the same metrics, got {sorted(sums)} and {sorted(means)}"
        )


def _as_float(value: mx.array) -> float:
    return float(value.item())  # type: ignore[arg-type]


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
