"""What happens in `fit` between two steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from purestep._checkpoint.run.signals import Signals
from purestep._core import tree
from purestep._loop.core.progress import Progress, Save, Stop
from purestep._loop.fitting.evaluation import Evaluation
from purestep._loop.fitting.hooks import Hooks
from purestep._loop.fitting.ledger import Ledger
from purestep._loop.fitting.storage import Storage
from purestep._loop.running.run import Made
from purestep._measures.finite import nonfinite_paths
from purestep._steps.state import TrainState
from purestep._transforms.core.base import apply_updates
from purestep._transforms.wrappers.accumulation import flush

SIGNAL = "signal"


class Session:
    """The parts of a run that act between steps, and the progress after the last one."""

    def __init__(
        self,
        caller: str,
        step: Any,
        ledger: Ledger,
        hooks: Hooks,
        evaluations: tuple[Evaluation, ...],
        storage: Storage,
        asked: Signals,
        *,
        save_evaluated: bool,
        stop_on_nonfinite: bool,
    ):
        self._caller, self._step = caller, step
        self._ledger, self._hooks, self._evaluations = ledger, hooks, evaluations
        self._storage, self._asked = storage, asked
        self._save_evaluated, self._stop_on_nonfinite = save_evaluated, stop_on_nonfinite
        self.progress: Progress | None = None

    def after(self, made: Made) -> str | None:
        """Do everything that is due after a step; return the reason to stop, if there is one."""
        if made.last:
            made = made._replace(state=flushed(self._step, made.state))
        ledger = self._ledger
        ledger.count(made)
        self.progress = progress = ledger.progress(made, last=made.last)
        requests = self._hooks.step_end(progress)
        stop = next((request.reason for request in requests if isinstance(request, Stop)), None)
        if stop is None and self._stop_on_nonfinite and progress.row is not None:
            stop = broken(progress.step, progress.state, progress.values)
        signalled = self._asked.received
        ledger.owed = [
            e.name for e in self._evaluations if e.due(ledger.step) or made.last or stop is not None
        ]
        if ledger.owed and not signalled:
            requests += self.evaluate()
            stop = stop or next((r.reason for r in requests if isinstance(r, Stop)), None)
        wanted = any(isinstance(request, Save) for request in requests) or signalled
        wanted = wanted or (self._save_evaluated and self.progress.evaluated is not None)
        if self._storage.after_step(self.progress, wanted=wanted, signalled=signalled):
            self._hooks.checkpoint(self.progress)
        if stop is None and self._stop_on_nonfinite and self._storage.refused:
            stop = broken(progress.step, progress.state, progress.values or ledger.values())
        return stop or (SIGNAL if self._asked.received and not made.last else None)

    def evaluate(self) -> list[Stop | Save]:
        """Make the evaluations that are owed; return the requests of the callbacks."""
        assert self.progress is not None
        figures: dict[str, float] = {}
        texts: dict[str, list[str]] = {}
        for evaluation in self._evaluations:
            if evaluation.name in self._ledger.owed:
                measured = evaluation.measured(self._caller, self.progress.state)
                figures |= measured.figures
                texts |= measured.texts
        self._ledger.owed = []
        self._ledger.history.evaluated(self._ledger.step, figures)
        self.progress = self.progress._replace(evaluated=figures, texts=texts, seconds=self._ledger.seconds)
        return self._hooks.eval_end(self.progress)


def broken(step: int, state: Any, values: Mapping[str, Sequence[float]]) -> str | None:
    """Return a sentence if training is broken: a metric and the parameters are not finite.

    A step with a NaN that a transform skipped leaves finite parameters, and training goes on.
    """
    count = max(map(len, values.values()), default=0)
    found = [
        (step - count + 1 + number, name)
        for name, numbers in values.items()
        for number, value in enumerate(numbers)
        if value - value != 0.0  # NaN or an infinity
    ]
    if not found:
        return None
    paths = nonfinite_paths(getattr(state, "params", state))
    if not paths:
        return None
    first, name = min(found)
    return f"{name} is not finite at step {first}; the first parameter that is not finite is {paths[0]}"


def flushed(step: Any, state: Any) -> Any:
    """Return the state after the incomplete window of `accumulate`, if it has one, is applied."""
    if not isinstance(state, TrainState) or not tree.fields(state.opt_state, "mini_step"):
        return state
    transform = transform_of(step)
    if transform is None:
        return state
    updates, opt_state = flush(transform, state.opt_state, state.params)
    return state._replace(params=apply_updates(state.params, updates), opt_state=opt_state)


def transform_of(step: Any) -> Any:
    """Return the gradient transform of a step, through wrappers such as `compiled`, or `None`."""
    while step is not None:
        transform = getattr(step, "transform", None)
        if transform is not None:
            return transform
        step = getattr(step, "step", None)
    return None
