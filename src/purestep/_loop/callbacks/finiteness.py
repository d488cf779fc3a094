"""`nonfinite`: stop at a NaN or an infinity, and keep the step that made it."""

import os
import warnings
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk.naming import check_path
from purestep._core.types import Batch, StepFn
from purestep._loop.core.progress import Callback, Progress, Request, Run, Stop, broken
from purestep._replay.recording import ReplayWarning, record


class Nonfinite(Callback):
    """Stops a run that is broken; `nonfinite` makes it.

    Attributes:
        bundle: the replay bundle that was written, or `None`.
    """

    def __init__(self, bundles: Path | None):
        self._root, self.bundle = bundles, None
        self._step: StepFn | None = None
        self._sound: Any = None  # the state after the last row without a NaN
        self._batches: list[Batch] = []  # of the steps since

    def on_train_begin(self, run: Run) -> None:
        """Keep the step and the first state, to run again from it."""
        self._step, self._batches = run.step, []
        self._sound = run.state if self._root is not None else None

    def on_step_end(self, progress: Progress) -> Request:
        """At a row, look at each metric since the row before."""
        if self._root is not None:
            self._batches.append(progress.batch)
        if progress.row is None:
            return None
        reason = broken(progress.step, progress.state, progress.values)
        if reason is not None:
            self.bundle: Path | None = self._recorded()
            kept = f"; the step is kept in {self.bundle}" if self.bundle is not None else ""
            return Stop(reason + kept)
        if self._root is not None:
            self._sound, self._batches = progress.state, []
        return None

    def on_train_end(self, result: Any) -> None:
        """Free the state and the batches."""
        self._sound, self._batches, self._step = None, [], None

    def _recorded(self) -> Path | None:
        """Run the steps since the last sound state again, and write the first broken one to a bundle."""
        if self._root is None or self._step is None:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReplayWarning)
            with record(self._step, self._root, every=1) as step:
                state = self._sound
                for batch in self._batches:
                    state, _ = step(state, batch)
                    step.check()
                    if step.bundles:
                        return step.bundles[0]
        return None


def nonfinite(bundles: str | os.PathLike[str] | None = None) -> Nonfinite:
    """Stop when a metric and the parameters are not finite; the reason names the step and the first leaf.

    `fit` stops by itself in this case; this callback adds the bundle. It reads nothing from the device but at
    rows. A NaN that a transform skipped leaves finite parameters, and the run goes on.

    Args:
        bundles: a directory for a replay bundle. The steps since the last sound row are made again, and the
            first broken one is written with its state and batch: see `ps.replay`. This keeps one more state
            and the batches since the last row in memory.

    >>> callback = nonfinite("run/bundles")
    """
    return Nonfinite(None if bundles is None else check_path("nonfinite", bundles))
