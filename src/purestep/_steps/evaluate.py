"""The evaluation step, `eval_step(state, batch) -> metrics`, and what it gives over a whole data set."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import AnyMean, Mean, MeanSum, map_terms
from purestep._core.rng import check_key, fold_in, forbidden
from purestep._core.types import Batch, LossFn
from purestep._steps.core.batches import check_batch
from purestep._steps.core.outcome import check_loss_fn, keyless, outcome_of
from purestep._steps.state import TrainState, check_state

_EVALUATION = 0x6576  # folded into the state's key: independent of those that training draws from
_DRAW = "pass rng= to eval_step and draw from the key that loss_fn gets, or draw nothing in evaluation"


def eval_step(
    loss_fn: LossFn, *, stateful: bool = False, rng: mx.array | str | None = None
) -> Callable[[TrainState, Batch], dict[str, AnyMean]]:
    """Build the pure function that measures a state on one batch.

    `loss_fn` is the one that `train_step` takes, called with `None` for its key: what `functional`
    made then runs in evaluation mode, and a loss function that draws random numbers is refused.

    Args:
        loss_fn: as in `train_step`.
        stateful: as in `train_step`; the model_state that it returns is dropped.
        rng: for a model that draws in evaluation too, as a VAE does: a key, uint32 [2], the same for every
            batch, or `"state"` for a key that is a function of `state.rng`. `loss_fn` receives it; what
            `functional` made is then in training mode unless it is called with `train=False`.

    Returns:
        `step(state, batch) -> {"loss": Mean, ...}`, with the loss function's metrics as `Mean`s too, so
        that batches merge to the exact mean over all of them. A sum of means is a `MeanSum`.

    Raises:
        ValueError, TypeError: as `train_step`; also for random numbers drawn without a key while `rng` is
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
        with forbidden(f"{caller}: loss_fn", _DRAW) if key is None else keyless(key):
            outcome = outcome_of(
                caller, loss_fn, state.params, state.model_state, batch, key, stateful=stateful
            )
        if "loss" in outcome.metrics:
            raise checks.error(caller, "loss_fn's metrics may not be named loss")
        # The weights are stop_gradients. Of two equal ones among its outputs, as of a loss and a metric over
        # the same tokens, mx.compile loses one ("_Map_base::at"); of two equal sums it does not.
        means = {"loss": outcome.loss, **outcome.metrics}
        return {
            name: map_terms(lambda term: Mean(term.total, term.weight + 0.0), mean)
            for name, mean in means.items()
        }

    return step


def evaluate(
    eval_step: Callable[[Any, Batch], dict[str, AnyMean]],
    state: Any,
    source: Any,
    *,
    steps: int | None = None,
    perplexity: bool = False,
) -> dict[str, float]:
    """Measure a state on every batch of a source and return the exact means over all of them.

    Totals and weights are added up, in float64, and divided once: batches with more real tokens count
    more, as if there had been one batch. Each batch is computed before the one after next is asked for, so
    memory is that of two batches, however many there are.

    Args:
        eval_step: `eval_step(state, batch) -> {"loss": Mean, ...}`, as `eval_step` builds it, or compiled.
        state: what to measure; it is not changed.
        source: an iterable of batches, or an object with `at(step) -> batch`, which needs `steps`.
        steps: how many batches to take, from `at(0)` on; of an iterable, at most that many.
        perplexity: add `perplexity`, `exp(loss)`. It means something for a loss in nats a token only.

    Returns:
        Python floats: `loss`, every other metric, each over its own weight (0.0 where that is 0), `weight`,
        the sum of what the loss is a mean over (of a sum of means, what the first is), and, if asked for,
        `perplexity`, which is `inf` where that is too large for a float (a loss above 709.78) and NaN for a
        loss that is NaN.

    Raises:
        ValueError: if the source has no batch, as an iterator that was used up before, if nothing in it
            counts (a mean over nothing is no zero), or if its length is unknown and `steps` is not given.
        TypeError: if the source or what the step returns is not as above.

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
                    f"{name} must be a sum of as many means for every batch, "
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
        raise checks.error(caller, "source must hold something that counts, got a loss of weight 0")
    means = {
        name: sum(total / weight if weight else 0.0 for total, weight in terms)
        for name, terms in sums.items()
    }
    measured = {**means, "weight": weight}
    return {**measured, "perplexity": _exp(means["loss"])} if perplexity else measured


def _batches(caller: str, source: Any, steps: int | None) -> Iterator[Batch]:
    if steps is not None:
        steps = checks.integer(caller, "steps", steps, least=1)
    if steps is not None and hasattr(source, "at"):
        return (source.at(step) for step in range(steps))
    if isinstance(source, dict):  # one batch, which would be iterated over its names
        raise TypeError(f"{caller}: source must be an iterable of batches, got one batch; write [batch]")
    if isinstance(source, Iterable):
        return islice(source, steps)
    if hasattr(source, "at"):
        raise checks.error(caller, "a source with at(step) has no end: pass steps=, got None")
    raise TypeError(f"{caller}: source must be iterable or have at(step), got {type(source).__name__}")


def _one_behind(results: Iterator[dict[str, AnyMean]]) -> Iterator[dict[str, AnyMean]]:
    """Start computing each result, and hand it out once the next is started: the device never waits."""
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
