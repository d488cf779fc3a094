"""`keep_best`: save a checkpoint when a figure is better than ever."""

from collections.abc import Sequence
from typing import Any

from purestep._checkpoint.run.record import check_metric
from purestep._core import checks
from purestep._loop.callbacks.stopping import Rated
from purestep._loop.core.progress import Progress, Request, Run, Save, Stop


def is_best(values: Sequence[float], mode: str) -> bool:
    """Tell whether the last value is better than all before. NaN is never better.

    >>> is_best([2.0, 1.0], "min"), is_best([1.0, 1.0], "min"), is_best([1.0, 2.0], "max")
    (True, False, True)
    """
    *before, last = values
    if last != last:
        return False
    sign = 1 if mode == "min" else -1
    return all(sign * last < sign * value for value in before if value == value)


class KeepBest(Rated):
    """Asks for a checkpoint at each best evaluation; `keep_best` makes it.

    Attributes:
        best: the best state of this process, if `hold` is true.
    """

    def __init__(self, metric: str, mode: str, hold: bool):
        super().__init__("keep_best", metric)
        self._mode, self._hold = mode, hold
        self.best: Any = None
        self.all_ranks = hold  # each rank holds its own state

    def on_train_begin(self, run: Run) -> Stop | None:
        """Forget the best state of another run."""
        self.best = None
        return super().on_train_begin(run)

    def on_eval_end(self, progress: Progress) -> Request:
        """Ask for a checkpoint if the figure is the best so far."""
        values = self.values(progress)
        if values is None or not is_best(values, self._mode):
            return None
        if self._hold:
            self.best = progress.state
        return Save(f"{self._metric} is the best so far")


def keep_best(metric: str = "eval_loss", *, mode: str = "min", hold: bool = False) -> KeepBest:
    """Save a checkpoint whenever a figure of an evaluation is better than ever.

    A `Checkpointer(metric=...)` with the same metric never deletes the best checkpoint. The decision is a
    function of the history, so a resumed run knows the best of the run before.

    Args:
        metric: a figure of an evaluation.
        mode: `min` if smaller is better, or `max`.
        hold: also keep the best state in memory, as the attribute `best`: one more state. After resuming, it
            is `None` until an evaluation is better than all before; the best checkpoint has the state.

    Raises:
        ValueError: when `fit` begins, if it makes no evaluation; at the first evaluation, if no evaluation
            gives the figure.

    >>> callback = keep_best("eval_accuracy", mode="max")
    """
    check_metric("keep_best", metric, mode)
    if not isinstance(hold, bool):
        raise TypeError(f"keep_best: hold must be true or false, got {checks.shown(hold)}")
    return KeepBest(metric, mode, hold)
