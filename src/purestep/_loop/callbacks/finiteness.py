"""`nonfinite`: stop at a NaN or an infinity, and keep the step that made it."""

import os
import warnings
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk.naming import check_path
from purestep._core import checks
from purestep._core.types import Batch, StepFn
from purestep._loop.callbacks.intervals import EachStep
from purestep._loop.core.progress import Progress, Request, Run, Stop, broken
from purestep._measures.finite import nonfinite_paths
from purestep._replay.recording import ReplayWarning, record


class Nonfinite(EachStep):
    """Stops a run that is broken; `nonfinite` makes it.

    Attributes:
        bundle: the replay bundle that was written, or `None`.
    """

    def __init__(self, bundles: Path | None):
        self._root = bundles
        self.bundle: Path | None = None
        self._step: StepFn | None = None
        self._sound: Any = None  # the state after the last row without a NaN
        self._batches: list[Batch] = []  # of the steps since

    def on_train_begin(self, run: Run) -> None:
        """Keep the step and the first state, to run again from it; refuse a directory of checkpoints."""
        self.bundle, self._batches = None, []
        if self._root is not None and run.ranks > 1:
            raise checks.error(
                "nonfinite", f"bundles must be left out if several processes train, got {run.ranks}"
            )
        if self._root is not None:
            record(run.step, self._root).close()
            self._step, self._sound = run.step, run.state

    def on_step_end(self, progress: Progress) -> Request:
        """At a row, look at each metric since the row before."""
        self.passed(progress)
        if progress.row is None:
            return None
        reason = broken(progress.state, progress.values, progress.value_steps)
        if reason is not None:
            return Stop(reason + self._kept("ignore"))
        if self._root is not None:
            self._sound, self._batches = progress.state, []
        return None

    def passed(self, progress: Progress) -> None:
        """Keep the batch."""
        if self._root is not None:
            self._batches.append(progress.batch)

    def on_train_end(self, result: Any) -> None:
        """Keep the step if the run ended broken before a row; free the state and the batches."""
        if self._batches and nonfinite_paths(_params(result.state)):
            # The reason is settled: the warning of the recorder names the bundle, or this one says why not.
            said = self._kept("always")
            if self.bundle is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("always", ReplayWarning)
                    warnings.warn(f"nonfinite: {said[2:]}", ReplayWarning, stacklevel=2)
        self._sound, self._batches, self._step = None, [], None

    def _kept(self, warning: Any) -> str:
        """Write the first broken step since the last sound state; return the end of the reason."""
        step, state, batches = self._step, self._sound, self._batches
        self._sound, self._batches = None, []
        if self._root is None or step is None:
            return ""
        if nonfinite_paths(_params(state)):
            return "; no step is kept: the parameters were not finite at the row before"
        for batch in batches:
            after, _ = step(state, batch)
            if nonfinite_paths(_params(after)):
                break
            state = after
        else:
            return "; no step is kept: the steps were finite when they were repeated"
        try:
            with warnings.catch_warnings():
                # Filters of the program could make an error of the warning, in place of the reason.
                warnings.simplefilter(warning, ReplayWarning)
                with record(step, self._root) as recorder:
                    recorder(state, batch)
        except (OSError, ValueError) as error:
            return f"; the step could not be kept: {error}"
        self.bundle = recorder.bundles[0]
        return f"; the step is kept in {self.bundle}"


def nonfinite(bundles: str | os.PathLike[str] | None = None) -> Nonfinite:
    """Stop when a metric and the parameters are not finite; the reason names the step and the first leaf.

    `fit` stops by itself in this case; this callback adds the bundle. It reads nothing from the device but at
    rows. A NaN that a transform skipped leaves finite parameters, and the run goes on.

    Args:
        bundles: a directory for a replay bundle. The steps since the last sound row are made again. The first
            one whose parameters are not finite is written with its state and batch: see `ps.replay`. This
            keeps one more state and the batches since the last row in memory.

    Raises:
        ValueError: when `fit` begins, if the directory holds checkpoints, if the step is a recorder, or if
            several processes train: they would have to make the steps again together.
        LockedError: when `fit` begins, if a `Checkpointer` or another recorder writes to the directory.

    Warns:
        ReplayWarning: if the run ended before the next row, so that its reason cannot name the bundle.

    >>> callback = nonfinite("run/bundles")
    """
    return Nonfinite(None if bundles is None else check_path("nonfinite", bundles))


def _params(state: Any) -> Any:
    return getattr(state, "params", state)
