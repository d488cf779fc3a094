"""`early_stopping`: stop when a figure no longer improves."""

from collections.abc import Collection, Sequence

from purestep._checkpoint.run.record import check_metric
from purestep._core import checks
from purestep._loop.core.progress import Callback, Progress, Request, Run, Stop


def waited(
    values: Sequence[float], *, min_delta: float = 0.0, mode: str = "min", baseline: float | None = None
) -> int:
    """Return how many values came since the last improvement.

    A value improves if it is better than the best so far, or than `baseline`, by more than `min_delta`. NaN
    never improves.

    >>> waited([3.0, 2.0, 2.5, 1.9]), waited([3.0, 2.0, 2.5, 1.9], min_delta=0.5)
    (0, 2)
    >>> waited([0.5, 0.6, 0.4], mode="max", baseline=0.55)
    1
    """
    sign = 1.0 if mode == "min" else -1.0
    best, count = None if baseline is None else sign * baseline, 0
    for value in values:
        number = sign * value
        if number == number and (best is None or number < best - min_delta):
            best, count = number, 0
        else:
            count += 1
    return count


def is_unavailable(metric: str, known: Collection[str], evaluations: Collection[str]) -> bool:
    """Tell whether no evaluation gives a figure.

    The figures of an evaluation begin with its name, so a figure may still come from an evaluation that has
    given nothing yet.

    Args:
        metric: the name of the figure.
        known: the names of all figures and texts so far.
        evaluations: the names of the evaluations.

    >>> is_unavailable("slow_loss", ["fast_loss"], ["fast", "slow"])
    False
    >>> is_unavailable("slow_accuracy", ["fast_loss", "slow_loss"], ["fast", "slow"])
    True
    """
    owner = _owner(metric, evaluations)
    reported = {_owner(name, evaluations) for name in known}
    return metric not in known and (owner is None or owner in reported)


def _owner(figure: str, evaluations: Collection[str]) -> str | None:
    """Return the evaluation that a figure belongs to: that with the longest name."""
    names = [name for name in evaluations if figure == name or figure.startswith(f"{name}_")]
    return max(names, key=len, default=None)


class Rated(Callback):
    """A callback that decides by one figure of an evaluation.

    A figure that no evaluation gives is refused, so that the callback is never without effect.
    """

    def __init__(self, caller: str, metric: str):
        self._caller, self._metric = caller, metric
        self._evaluations: tuple[str, ...] = ()

    def on_train_begin(self, run: Run) -> Stop | None:
        """Refuse a run without evaluations."""
        self._evaluations = run.evaluation_names
        if not run.evaluation_names:
            raise checks.error(
                self._caller, f"fit must be called with evaluate=, which gives the metric {self._metric!r}"
            )

    def values(self, progress: Progress) -> list[float] | None:
        """Return all values of the figure, or `None` if this evaluation does not give it."""
        if self._metric in (progress.evaluated or {}):
            return progress.history.column(self._metric)[1]
        known = {*progress.history.names, *progress.texts}
        if is_unavailable(self._metric, known, self._evaluations):
            given = ", ".join(sorted(progress.evaluated or {})) or "none"
            raise checks.error(
                self._caller, f"metric must be a figure of an evaluation ({given}), got {self._metric!r}"
            )
        return None


class EarlyStopping(Rated):
    """Stops a run whose figure no longer improves; `early_stopping` makes it."""

    def __init__(self, metric: str, patience: int, min_delta: float, mode: str, baseline: float | None):
        super().__init__("early_stopping", metric)
        self._patience = patience
        self._min_delta, self._mode, self._baseline = min_delta, mode, baseline

    def on_train_begin(self, run: Run) -> Stop | None:
        """Ask to stop if the run that is resumed had used up the patience."""
        super().on_train_begin(run)
        return self._decision(run.history.column(self._metric)[1])

    def on_eval_end(self, progress: Progress) -> Request:
        """Ask to stop if the patience is used up."""
        values = self.values(progress)
        return None if values is None else self._decision(values)

    def _decision(self, values: Sequence[float]) -> Stop | None:
        count = waited(values, min_delta=self._min_delta, mode=self._mode, baseline=self._baseline)
        if count < self._patience:
            return None
        return Stop(f"{self._metric} has not improved in {count} evaluations")


def early_stopping(
    metric: str = "eval_loss",
    *,
    patience: int = 5,
    min_delta: float = 0.0,
    mode: str = "min",
    baseline: float | None = None,
) -> EarlyStopping:
    """Stop when a figure has not improved in `patience` evaluations.

    The decision is a function of the history, so a resumed run stops at the same step. A run that
    this callback stopped is not continued when it is started again: it ends at once with the same reason. To
    go on, give a larger `patience`.

    Args:
        metric: the name of an evaluation and its metric: `eval_loss` is `loss` of the evaluation `eval`.
        patience: evaluations without improvement, at least 1.
        min_delta: an improvement counts only if it is larger than this; at least 0.
        mode: `min` if smaller is better, or `max`.
        baseline: the first best value. A value that does not beat it by more than `min_delta` is no
            improvement.

    Raises:
        ValueError: when `fit` begins, if it makes no evaluation; at the first evaluation, if no evaluation
            gives the figure.

    >>> callback = early_stopping("eval_loss", patience=3, min_delta=1e-4)
    """
    caller = "early_stopping"
    check_metric(caller, metric, mode)
    patience = checks.integer(caller, "patience", patience, least=1)
    min_delta = checks.number(caller, "min_delta", min_delta, least=0)
    baseline = None if baseline is None else checks.number(caller, "baseline", baseline)
    return EarlyStopping(metric, patience, min_delta, mode, baseline)
