"""The checkpoints of a run: when they are saved, and failures that must not end the run."""

import math
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from purestep._checkpoint.disk.lock import LockedError
from purestep._checkpoint.run.manager import Checkpointer
from purestep._core import checks
from purestep._loop.callbacks.stopping import is_unavailable
from purestep._loop.core.progress import Progress, nonfinite_params
from purestep._loop.core.ranks import Ranks


class CheckpointWarning(UserWarning):
    """A checkpoint was not saved; training goes on."""


class _NotFiniteError(Exception):
    """A state has parameters that are not finite."""


class Storage:
    """Saves the checkpoints of one run, if there is a checkpointer.

    If the disk is full or cannot be written, `save` warns and training goes on; the next checkpoint is
    another attempt. Only the last checkpoint of a run raises the error. A state with parameters that are not
    finite is not saved, so that it does not replace a sound one; of a population, those of all members. Every
    rank of a run does the same.
    """

    def __init__(
        self,
        caller: str,
        checkpointer: Checkpointer | None,
        every: int | None,
        metadata: Callable[[], Mapping[str, Any]],
        ranks: Ranks,
        *,
        step: int | None,
    ):
        self._caller, self._checkpointer, self._every, self._metadata = caller, checkpointer, every, metadata
        self._ranks = ranks
        self._saved: Any = None  # the state that was saved last, or refused
        self.step = step  # the step of the last checkpoint
        self.refused: str | None = None  # says why the last state was not saved, if it is not finite
        self._metric_found = checkpointer is None or checkpointer.metric is None

    def check_metric(self, progress: Progress, evaluations: Collection[str]) -> None:
        """Refuse a checkpointer whose metric neither the step nor an evaluation gives."""
        if self._metric_found or self._checkpointer is None or not progress.history.logged_names:
            return
        metric, names = self._checkpointer.metric or "", progress.history.names
        self._metric_found = metric in names
        if is_unavailable(metric, {*names, *progress.texts}, evaluations):
            raise checks.error(
                self._caller,
                "checkpointer.metric must be a metric of the step or a figure of an evaluation "
                f"({', '.join(names)}), got {metric!r}",
            )

    def after_step(self, progress: Progress, *, wanted: bool, signalled: bool) -> bool:
        """Save the state if it is wanted or due; return whether it was saved.

        A signal is a reason to save, and so is an evaluation if the checkpointer has no policy.
        """
        checkpointer, self.refused = self._checkpointer, None
        if checkpointer is None:
            return False
        wanted = wanted or signalled or (checkpointer.save_when is None and progress.evaluated is not None)
        if wanted or (self._every is not None and progress.step % self._every == 0):
            return self.save(progress)
        if checkpointer.save_when is None:
            return False
        numbers = {**progress.metrics, **(progress.row or {}), **(progress.evaluated or {})}
        return self._attempt(
            progress,
            lambda: checkpointer.save_if_due(
                progress.state,
                step=progress.step,
                metrics=numbers,
                metadata=lambda: self._facts(progress),
                signalled=signalled,
            ),
        )

    def save(self, progress: Progress, *, last: bool = False) -> bool:
        """Save the state, unless it is saved already or not finite; return whether it was saved.

        Args:
            progress: has the state.
            last: whether no checkpoint follows, so that errors are raised.
        """
        if self._checkpointer is None or self._saved is progress.state:
            return False
        return self._attempt(progress, lambda: self._save(progress), last=last)

    def _save(self, progress: Progress) -> bool:
        checkpointer = self._checkpointer
        assert checkpointer is not None
        numbers = {**(progress.row or progress.metrics), **(progress.evaluated or {})}
        rated = checkpointer.metric
        if rated in numbers and math.isnan(float(numbers[rated])):
            del numbers[rated]
        facts = self._facts(progress)
        checkpointer.save(progress.state, step=progress.step, metrics=numbers, metadata=facts)
        return True

    def warn_refused(self) -> None:
        """Warn that the last state was not saved."""
        if self._ranks.rank == 0:
            warnings.warn(f"{self._caller}: {self.refused}", CheckpointWarning, stacklevel=2)

    def forget(self) -> None:
        """Save the last state again when the run ends."""
        self._saved = None

    def finish(self, progress: Progress | None) -> None:
        """Save the last state, if it is not saved, and wait for all checkpoints; raise errors.

        The error of an earlier checkpoint was in the background: then the last state is saved again.
        """
        checkpointer = self._checkpointer
        if checkpointer is None:
            return
        try:
            if progress is not None:
                self.save(progress, last=True)
            checkpointer.wait()
        except OSError:
            if progress is None:
                raise
            self._saved = None
            self.save(progress, last=True)
            checkpointer.wait()

    def where(self) -> str:
        """Return a sentence for errors: where the last state is."""
        if self._checkpointer is None:
            return "no checkpointer was given; the last state is in error.result.state"
        if self.step is None:
            return "no checkpoint was saved"
        return f"the state after step {self.step} is saved in {self._checkpointer.path}"

    def _facts(self, progress: Progress) -> Mapping[str, Any]:
        """Return the metadata of a checkpoint that is about to be saved. Waits for the device."""
        paths = nonfinite_params(progress.state, {})
        if paths:
            raise _NotFiniteError(
                f"step {progress.step} is not saved: its parameters are not finite, {paths[0]} for example"
            )
        return self._metadata()

    def _attempt(self, progress: Progress, save: Callable[[], bool], *, last: bool = False) -> bool:
        try:
            saved = save()
        except LockedError:
            raise
        except _NotFiniteError as error:
            self.refused, self._saved = str(error), progress.state
            return False
        except OSError as error:
            if last:
                raise
            message = (
                f"{self._caller}: a checkpoint failed at step {progress.step}, training goes on: {error}"
            )
            if self._ranks.rank == 0:
                warnings.warn(message, CheckpointWarning, stacklevel=2)
            # The error may be that of an earlier save; then the save of this step has begun.
            return False
        if saved:
            self._saved, self.step = progress.state, progress.step
        return saved
