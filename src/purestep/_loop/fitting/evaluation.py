"""`Evaluation`: what `fit` measures between steps, and when."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import count
from typing import Any, NamedTuple

from purestep._core import checks
from purestep._core.types import Batch, EvalStepFn, Source
from purestep._loop.core.progress import Progress
from purestep._loop.core.ranks import Ranks
from purestep._loop.running.cursor import batches_per_epoch, check_source, is_on_policy
from purestep._parallel.watchdog import beat
from purestep._steps.evaluate import evaluate

_SAME = 1e-5  # the relative difference of figures that ranks compute from the same rows


class Interrupted(Exception):  # noqa: N818
    """A signal came during an evaluation."""


class Measured(NamedTuple):
    """The result of an evaluation: numbers and texts by name."""

    figures: dict[str, float]
    texts: dict[str, list[str]]


@dataclass(frozen=True)
class Evaluation:
    """A measurement of the state every `every` steps and after the last step.

    With a source, it is `ps.evaluate`: exact means over all batches, named `eval_loss` and so on. Without
    one, `measure(state)` is any function of the state: it returns a dict of numbers, or text, such as samples
    of a language model: a string, a list of strings, or a dict of these.

    Attributes:
        measure: `eval_step(state, batch) -> {"loss": Mean, ...}`, or a function of the state.
        source: an iterable of batches that can be read again and again, or an object with `at(step)`.
        every: steps between evaluations, or `None` for the last step only.
        name: begins the names of the figures: `eval_loss`. Each evaluation of a run needs another name.
        batches: the number of batches; by default all of an iterable, `len(source)` for `at(step)`.
        perplexity: add `eval_perplexity`, for a loss in nats per token.
        view: a function of the state that returns the state to measure, such as one with averaged parameters:
            `lambda state: state.replace(params=ps.eval_params(state.opt_state, state.params))`.

    Raises:
        ValueError: if `source` is an iterator, which could be read only once, or `every` is below 1.

    >>> import mlx.core as mx, purestep as ps
    >>> loss_fn = lambda params, batch, rng: ps.Mean.of(mx.square(params["w"] - batch["x"]))
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, ps.optimizers.sgd(0.5))
    >>> evaluation = Evaluation(ps.eval_step(loss_fn), [{"x": mx.array([1.0, 3.0])}], every=100)
    >>> evaluation.measured("fit", state).figures
    {'eval_loss': 5.0, 'eval_weight': 2.0}
    """

    measure: EvalStepFn | Callable[[Any], Any]
    source: Source | Iterable[Batch] | None = None
    _: KW_ONLY
    every: int | None = None
    name: str = "eval"
    batches: int | None = None
    perplexity: bool = False
    view: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        caller = "Evaluation"
        checks.function(caller, "measure", self.measure)
        if self.view is not None:
            checks.function(caller, "view", self.view)
        for name in ("every", "batches"):
            if getattr(self, name) is not None:
                checks.integer(caller, name, getattr(self, name), least=1)
        if not isinstance(self.name, str) or not self.name:
            raise checks.error(caller, f"name must be a word, got {self.name!r}")
        if self.name in ("loss", "grad_norm", "learning_rate", "step"):
            raise checks.error(caller, f"name must differ from the metrics of a step, got {self.name!r}")
        if self.source is not None:
            check_source(caller, self.source)
        if isinstance(self.source, Iterator):
            raise checks.error(
                caller,
                "source must be read at every evaluation, and an iterator can be read once: pass a list, "
                "or an object with at(step)",
            )
        if is_on_policy(self.source):
            raise checks.error(
                caller, "source must give its batches by step or one after the other, got an on-policy source"
            )
        if self.source is None and (self.batches is not None or self.perplexity):
            raise checks.error(caller, "batches and perplexity need a source")
        if hasattr(self.source, "at") and self.batches is None and batches_per_epoch(self.source) is None:
            raise checks.error(caller, "batches must be given for a source with at(step) and no length")
        self._check_arguments(caller)

    def _check_arguments(self, caller: str) -> None:
        """Refuse a function that cannot be called: an `eval_step` without a source, a loss function with."""
        given = (None,) if self.source is None else (None, None)
        try:
            signature = inspect.signature(self.measure)
        except (TypeError, ValueError):  # mx.compile's functions have none.
            return
        try:
            signature.bind(*given)
        except TypeError:
            rule = "the state alone without source=" if self.source is None else "(state, batch)"
            names = ", ".join(signature.parameters) or "nothing"
            raise checks.error(caller, f"measure must take {rule}, got a function of {names}") from None

    def due(self, step: int) -> bool:
        """Tell whether to measure after this step."""
        return self.every is not None and step % self.every == 0

    def measured(self, caller: str, state: Any, interrupted: Callable[[], bool] = bool) -> Measured:
        """Measure a state. Waits for the device.

        Raises:
            Interrupted: before a batch, if `interrupted` returns true.
        """
        state = state if self.view is None else self.view(state)
        if self.source is None:
            return self._of_function(caller, state)
        batches = self.batches
        if batches is None and hasattr(self.source, "at"):
            batches = batches_per_epoch(self.source)

        def measure(state: Any, batch: Batch) -> Any:
            if interrupted():
                raise Interrupted
            beat()
            made: Any = self.measure
            return made(state, batch)

        means = evaluate(measure, state, self.source, steps=batches, perplexity=self.perplexity)
        return Measured({f"{self.name}_{name}": value for name, value in means.items()}, {})

    def _of_function(self, caller: str, state: Any) -> Measured:
        measure: Any = self.measure
        found = measure(state)
        if not isinstance(found, Mapping):
            found = {"": found}
        figures, texts = {}, {}
        for key, value in found.items():
            name = f"{self.name}_{key}" if key else self.name
            number = number_of(value)
            if number is not None:
                figures[name] = number
            elif isinstance(value, str):
                texts[name] = [value]
            elif isinstance(value, Sequence) and all(isinstance(text, str) for text in value):
                texts[name] = list(value)
            else:
                shape = getattr(value, "shape", None)
                shown = f"an array of shape {shape}" if isinstance(shape, tuple) else checks.shown(value)
                raise TypeError(f"{caller}: evaluation {name} must return numbers or texts, got {shown:.200}")
        return Measured(figures, texts)


def together(caller: str, ranks: Ranks, evaluation: Evaluation, progress: Progress) -> Measured:
    """Measure the state of a run on all ranks; each of them receives the figures of rank 0.

    Raises:
        Interrupted: if a signal came to any rank, before a batch.
        ValueError: if the means over a source differ between the ranks.
    """
    if ranks.size == 1:
        return evaluation.measured(caller, progress.state, lambda: ranks.signalled)
    where, batches = f"evaluation {evaluation.name} of step {progress.step}", count()

    def interrupted() -> bool:
        ranks.gathered(f"batch {next(batches)} of {where}", lambda: None)
        return ranks.signalled

    measured = evaluation.measured(caller, progress.state, interrupted)
    found = ranks.gathered(f"the end of {where}", lambda: measured.figures)
    for rank, figures in enumerate(found):
        for name, value in found[0].items():
            other = figures.get(name, math.nan)
            same = math.isclose(value, other, rel_tol=_SAME) or (value != value and other != other)
            if evaluation.source is not None and not same:
                raise checks.error(
                    caller,
                    f"{name} must be the same on all ranks, got {value:g} on rank 0 and {other:g} on rank "
                    f"{rank}; use ps.parallel.merged for an evaluation of the rows of each rank",
                )
    return measured._replace(figures=found[0])


def number_of(value: Any) -> float | None:
    """Return a Python number, a Boolean or an array of one element as a number; `None` for other values."""
    if getattr(value, "size", None) == 1 and hasattr(value, "item"):
        value = value.item()
    return float(value) if isinstance(value, bool) or checks.is_number(value) else None


def evaluations_of(caller: str, given: Any) -> tuple[Evaluation, ...]:
    """Return the evaluations as a tuple; refuse other values, and names that are used twice."""
    if given is None:
        return ()
    if not isinstance(given, (Evaluation, Iterable)) or isinstance(given, (str, dict)):
        raise TypeError(f"{caller}: evaluate must be an Evaluation or several, got {checks.shown(given)}")
    found = (given,) if isinstance(given, Evaluation) else tuple(given)
    for number, evaluation in enumerate(found):
        if not isinstance(evaluation, Evaluation):
            raise TypeError(
                f"{caller}: evaluate[{number}] must be an Evaluation, got {checks.shown(evaluation)}"
            )
    names = [evaluation.name for evaluation in found]
    for name in names:
        if names.count(name) > 1:
            raise checks.error(caller, f"evaluations must have different names, got {name!r} twice")
    return found
