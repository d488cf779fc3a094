"""What happens in `fit` between two steps."""

from collections.abc import Sequence
from typing import Any

from purestep._core import checks, tree
from purestep._loop.core.progress import Progress, Save, Stop, broken
from purestep._loop.core.ranks import Ranks
from purestep._loop.fitting.evaluation import Evaluation, Interrupted, together
from purestep._loop.fitting.flushing import flushed
from purestep._loop.fitting.hooks import Hooks
from purestep._loop.fitting.ledger import Ledger
from purestep._loop.fitting.storage import Storage
from purestep._loop.profiling.clock import OFF, OTHER, Off
from purestep._loop.running.run import Made

SIGNAL = "signal"
_SHOWN = 3  # differences of two structures in an error


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
        ranks: Ranks,
        *,
        structure: tree.Spec | None,
        stop_on_nonfinite: bool,
        clock: Off = OFF,
    ):
        self._caller, self._step, self._clock = caller, step, clock
        self._ledger, self._hooks, self._evaluations = ledger, hooks, evaluations
        self._storage, self._ranks = storage, ranks
        self._structure, self._stop_on_nonfinite = structure, stop_on_nonfinite
        self._made: list[str] = []  # the evaluations of the last state
        self.progress: Progress | None = None

    def interrupted(self) -> bool:
        """Tell whether a signal has come."""
        return self._ranks.signalled

    def after(self, made: Made) -> str | None:
        """Do everything that is due after a step; return the reason to stop, if there is one."""
        self._check_structure(made.state)
        if made.last:
            made = made._replace(state=flushed(self._step, made.state))
        ledger = self._ledger
        ledger.count(made)
        self._made = []
        self.progress = progress = ledger.progress(made, last=made.last)
        # If a callback raises, a resumed run makes the evaluations that were due.
        ledger.owed = [e.name for e in self._evaluations if made.last or e.due(ledger.step)]
        self._clock.at("callbacks")
        requests = self._hooks.step_end(progress)
        self._clock.at(OTHER)
        stop = first_reason(requests)
        if stop is None and self._stop_on_nonfinite and progress.row is not None:
            stop = broken(progress.state, progress.values, progress.value_steps)
        if stop is not None:
            ledger.owed = self._names()
        stop = self._finished(stop, requests, last=made.last)
        return stop or (SIGNAL if self._ranks.signalled and (not made.last or ledger.owed) else None)

    def catch_up(self, state: Any) -> str | None:
        """Make the evaluations that a run owed when it ended; return the reason to stop."""
        ledger = self._ledger
        ledger.owed = [name for name in ledger.owed if name in self._names()]
        if not ledger.owed:
            return None
        self.progress = ledger.standing(state)
        stop = self._finished(None, [], last=False)
        return stop or (SIGNAL if self._ranks.signalled else None)

    def _finished(self, stop: str | None, requests: Sequence[Stop | Save], *, last: bool) -> str | None:
        """Make the evaluations that are owed and save what is due; return the reason to stop."""
        stop, requests = self._measured(stop, requests)
        assert self.progress is not None
        self._storage.check_metric(self.progress, self._names())
        self._clock.at("checkpoint")
        saved = self._storage.after_step(
            self.progress,
            wanted=last or stop is not None or any(isinstance(request, Save) for request in requests),
            signalled=self._ranks.signalled,
        )
        if saved:
            self._clock.at("callbacks")
            asked = first_reason(self._hooks.checkpoint(self.progress))
            if asked is not None and stop is None:
                stop = asked
                self._ledger.owed = self._unmade()
                self._measured(stop, [])
                self._storage.forget()  # The last save of the run stores these evaluations.
        self._clock.at(OTHER)
        if stop is None and self._storage.refused:
            values, steps = self.progress.values, self.progress.value_steps
            if not values:
                values, steps = self._ledger.values(), self._ledger.value_steps
            if self._stop_on_nonfinite:
                stop = broken(self.progress.state, values, steps)
            if stop is None:
                self._storage.warn_refused()
        return stop

    def _measured(
        self, stop: str | None, requests: Sequence[Stop | Save]
    ) -> tuple[str | None, Sequence[Stop | Save]]:
        """Make the evaluations that are owed; return the reason to stop, and all requests.

        If a callback stops the run because of one evaluation, the others follow, since they measure the last
        state. A signal leaves the evaluations to the resumed run.
        """
        while self._ledger.owed and not self._ranks.signalled:
            found = self._evaluate()
            requests = [*requests, *found]
            if stop is None and (stop := first_reason(found)) is not None:
                self._ledger.owed = self._unmade()
        return stop, requests

    def _evaluate(self) -> Sequence[Stop | Save]:
        """Make the evaluations that are owed; return the requests of the callbacks."""
        assert self.progress is not None
        figures: dict[str, float] = {}
        texts: dict[str, list[str]] = {}
        for evaluation in self._evaluations:
            if evaluation.name not in self._ledger.owed:
                continue
            try:
                self._clock.at("evaluation")
                measured = together(self._caller, self._ranks, evaluation, self.progress)
                self._clock.at(OTHER)
            except Interrupted:
                return []
            except RuntimeError as error:
                # Ctrl-C in a terminal also ends the compilers that MLX starts.
                if type(error) is RuntimeError and self._ranks.size == 1 and self._ranks.signalled:
                    return []
                raise
            for name in (*measured.figures, *measured.texts):
                if name in figures or name in texts:
                    raise checks.error(self._caller, f"two evaluations give {name!r}: rename one of them")
            figures |= measured.figures
            texts |= measured.texts
        self._ledger.evaluated(figures)
        self._made += self._ledger.owed
        self._ledger.owed = []
        before = self.progress
        self.progress = before._replace(evaluated=figures, texts=texts, seconds=self._ledger.seconds)
        self._clock.at("callbacks")
        requests = self._hooks.eval_end(self.progress)
        self._clock.at(OTHER)
        if before.evaluated is not None:
            self.progress = self.progress._replace(
                evaluated={**before.evaluated, **figures}, texts={**before.texts, **texts}
            )
        return requests

    def _names(self) -> list[str]:
        return [evaluation.name for evaluation in self._evaluations]

    def _unmade(self) -> list[str]:
        """Return the names of the evaluations that this state still needs."""
        return [name for name in self._names() if name not in self._made]

    def _check_structure(self, state: Any) -> None:
        """Refuse a step whose first state could not be restored: it has another structure than its input."""
        if self._structure is None:
            return
        found = tree.differences(tree.spec(state), self._structure, "the new state", "the state before")
        if found:
            said = "; ".join(found[:_SHOWN])
            rule = "step must return a state of the structure that it gets, so that the run can be resumed"
            raise checks.error(self._caller, f"{rule}: {said}")
        self._structure = None


def first_reason(requests: Sequence[Stop | Save]) -> str | None:
    """Return the reason of the first `Stop`, or `None`."""
    return next((request.reason for request in requests if isinstance(request, Stop)), None)
