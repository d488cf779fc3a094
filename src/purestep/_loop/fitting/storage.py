"""The checkpoints of a run: when they are saved, and failures that must not end the run."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from purestep._checkpoint.disk.lock import LockedError
from purestep._checkpoint.run.manager import Checkpointer
from purestep._loop.core.progress import Progress
from purestep._measures.finite import nonfinite_paths


class CheckpointWarning(UserWarning):
    """A checkpoint was not saved; training goes on."""


class _NotFiniteError(Exception):
    """A state has parameters that are not finite."""


class Storage:
    """Saves the checkpoints of one run, if there is a checkpointer.

    If the disk is full or cannot be written, `save` warns and training goes on; the next checkpoint is
    another attempt. Only the last checkpoint of a run raises the error. A state with parameters that are not
    finite is not saved, so that it does not replace a sound one.
    """

    def __init__(
        self,
        caller: str,
        checkpointer: Checkpointer | None,
        every: int | None,
        metadata: Callable[[], Mapping[str, Any]],
        *,
        warn_nonfinite: bool,
    ):
        self._warn_nonfinite = warn_nonfinite
        self._caller, self._checkpointer, self._every, self._metadata = caller, checkpointer, every, metadata
        self._saved: Any = None  # the state that was saved last, or refused
        self.step: int | None = None  # its step
        self.refused = False  # whether the last state was not saved because it is not finite

    def after_step(self, progress: Progress, *, wanted: bool, signalled: bool) -> bool:
        """Save the state if it is wanted or due; return whether it was saved."""
        checkpointer = self._checkpointer
        if checkpointer is None:
            return False
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

    def save(self, progress: Progress) -> bool:
        """Save the state, unless it is saved already or not finite; return whether it was saved."""
        checkpointer = self._checkpointer
        if checkpointer is None or self._saved is progress.state:
            return False
        numbers = {**(progress.row or progress.metrics), **(progress.evaluated or {})}
        rated = checkpointer.metric
        if rated in numbers and math.isnan(float(numbers[rated])):
            del numbers[rated]
        return self._attempt(
            progress,
            lambda: (
                checkpointer.save(
                    progress.state, step=progress.step, metrics=numbers, metadata=self._facts(progress)
                )
                or True
            ),
        )

    def finish(self, progress: Progress | None) -> None:
        """Save the last state, if it is not saved, and wait for all checkpoints; raise errors.

        The error of an earlier checkpoint was in the background: then the last state is saved again.
        """
        checkpointer = self._checkpointer
        if checkpointer is None:
            return
        try:
            if progress is not None:
                self.save(progress)
            checkpointer.wait()
        except OSError:
            if progress is None:
                raise
            self._saved = None
            self.save(progress)
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
        if nonfinite_paths(getattr(progress.state, "params", {})):
            raise _NotFiniteError(f"step {progress.step} is not saved: its parameters are not finite")
        return self._metadata()

    def _attempt(self, progress: Progress, save: Callable[[], bool]) -> bool:
        try:
            saved = save()
        except LockedError:
            raise
        except _NotFiniteError as error:
            self.refused, self._saved = True, progress.state
            if self._warn_nonfinite:
                warnings.warn(f"{self._caller}: {error}", CheckpointWarning, stacklevel=2)
            return False
        except OSError as error:
            message = (
                f"{self._caller}: a checkpoint failed at step {progress.step}, training goes on: {error}"
            )
            warnings.warn(message, CheckpointWarning, stacklevel=2)
            # The error may be that of an earlier save; then the save of this step has begun.
            return False
        if saved:
            self._saved, self.step = progress.state, progress.step
        return saved
