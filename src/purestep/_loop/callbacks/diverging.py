"""`divergence`: stop when the loss grows."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from purestep._core import checks
from purestep._loop.core.progress import Callback, Progress, Request, Run, Stop

RECENT = 10  # the last losses, compared with the window


def diverges(losses: Sequence[float], window: int, factor: float) -> bool:
    """Tell whether the last 10 losses average over `factor` times the average of the window.

    The window is the last `window` losses, these 10 included. With fewer losses, or an average that is not
    above 0, the answer is no. The losses must be finite.

    >>> diverges([1.0] * 90 + [3.0] * 10, 100, 2.0), diverges([1.0] * 90 + [2.0] * 10, 100, 2.0)
    (True, False)
    """
    if len(losses) < window:
        return False
    recent, mean = losses[-RECENT:], sum(losses[-window:]) / window
    return mean > 0 and sum(recent) / len(recent) > factor * mean


class Divergence(Callback):
    """Stops a run whose loss grows; `divergence` makes it."""

    def __init__(self, metric: str, window: int, factor: float):
        self._metric, self._window, self._factor = metric, window, factor
        self._losses: deque[float] = deque(maxlen=window)
        self._restored = False

    def on_train_begin(self, run: Run) -> Stop | None:
        """Ask to stop if the run that is resumed had diverged; forget the losses of another run."""
        if not self._restored:
            self._losses.clear()
        self._restored = False
        return self._decision()

    def on_step_end(self, progress: Progress) -> Request:
        """At a row, look at each loss since the row before."""
        if progress.row is None:
            return None
        if self._metric not in progress.values:
            known = ", ".join(progress.values)
            raise checks.error(
                "divergence", f"metric must be a metric of the step ({known}), got {self._metric!r}"
            )
        for loss in progress.values[self._metric]:
            if not math.isfinite(loss):  # One NaN would make every average of the window NaN.
                continue
            self._losses.append(loss)
            stop = self._decision()
            if stop is not None:
                return stop
        return None

    def _decision(self) -> Stop | None:
        losses = list(self._losses)
        if not diverges(losses, self._window, self._factor):
            return None
        recent = sum(losses[-RECENT:]) / RECENT
        return Stop(
            f"{self._metric} diverges: its last {RECENT} values average {recent:.4g}, more than "
            f"{self._factor:g} times those of the last {self._window} steps"
        )

    def state(self) -> dict[str, Any]:
        """Return the losses of the window."""
        return {"losses": list(self._losses)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue with the window of the run that is resumed."""
        self._losses, self._restored = deque(saved["losses"], maxlen=self._window), True


def divergence(metric: str = "loss", *, window: int = 100, factor: float = 2.0) -> Divergence:
    """Stop when the last 10 values of a metric average over `factor` times the average of the window.

    Every step counts; the decision is made at each row. Steps with a NaN or an infinity are left out: `fit`
    and `nonfinite` look for those. While the average of the window is 0 or negative, as of some losses that
    have no lower bound, the run is never stopped. A run that stopped is not continued when it is started
    again.

    Args:
        metric: a metric of the step.
        window: steps, at least 20.
        factor: above 1. A factor of `window / 10` or more can never be reached by a loss that is not
            negative.

    Raises:
        ValueError: at the first row, if the step does not give the metric.

    >>> callback = divergence()
    """
    caller = "divergence"
    window = checks.integer(caller, "window", window, least=2 * RECENT)
    factor = checks.number(caller, "factor", factor, above=1)
    if factor >= window / RECENT:
        most = window / RECENT
        raise checks.error(caller, f"factor must be less than window / {RECENT} = {most:g}, got {factor}")
    return Divergence(metric, window, factor)
