"""The `Checkpointer`, which saves and restores the checkpoints of one run."""

import os
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, overload

import mlx.core as mx

from purestep._checkpoint.disk import tensors
from purestep._checkpoint.ranks.together import together
from purestep._checkpoint.restoring.restore import Rename, Template
from purestep._checkpoint.run import store
from purestep._checkpoint.run.arguments import Metadata, Numbers, checked_facts, checked_step, without_nan
from purestep._checkpoint.run.committing import Committer
from purestep._checkpoint.run.keeping import KeepPolicy
from purestep._checkpoint.run.newest import Restored, restore_from
from purestep._checkpoint.run.preparing import prepared
from purestep._checkpoint.run.record import Moment, Record, check_metric
from purestep._checkpoint.run.saving import SavePolicy, by_step, check_policies, is_due
from purestep._checkpoint.run.writer import Writer, raise_first
from purestep._core import checks
from purestep._core.types import Tree


class Checkpointer:
    """The checkpoints of one run, a directory each: `step_00000100`.

    States are immutable, so `save` keeps references to the arrays and returns immediately. One background
    thread writes them, without a copy. A checkpoint gets its name by one rename after all its data is on
    the disk, so it is complete or absent. Reading needs no write permission and changes nothing.

    Checkpoints are ordered by the time of saving: a step 410 that is saved after 500 is the newest. Use it as
    a context manager or call `close`: both wait for pending saves. Use it from one thread of one process.

    In several processes, each makes one, of a directory that all share, and calls `save`, `save_if_due`,
    `restore`, `delete`, `wait` and `close` at the same place as the others. An error of one rank is raised on
    all. Rank 0 writes a state that is equal on all ranks; each rank writes its part of a state of `sharded`.

    Args:
        path: the directory of all checkpoints. The first save creates it.
        keep: which checkpoints to keep after each save: `keep_last`, `keep_best`, `keep_every`, `keep_any`
            or your own function from records to steps. `None` keeps all. The newest checkpoint and the best
            by `metric` are always kept. Damaged checkpoints are never deleted.
        save_when: when `save_if_due` saves: `save_every_steps`, `save_every_seconds`, `save_on_best`,
            `save_on_signal`, `save_any` or your own function `(moment, records) -> bool`.
        metric: the metric that `best` compares.
        mode: `min` if a smaller metric is better, or `max`.
        asynchronous: write in the background; otherwise `save` waits until the checkpoint is written.
        max_pending: the most unfinished saves. Each keeps its arrays in memory; `save` waits for room.
        shard_bytes: the largest size of one file, or `None` for no limit.
        group: the processes; `None` for all that were launched together.

    >>> import mlx.core as mx, purestep as ps, tempfile
    >>> state = ps.TrainState.create({"w": mx.ones(2)}, ps.optimizers.sgd(0.1))
    >>> with Checkpointer(tempfile.mkdtemp(), keep=lambda records: set(), metric="loss") as checkpointer:
    ...     for step, loss in enumerate([0.3, 0.1, 0.2]):
    ...         checkpointer.save(state, step=step, metrics={"loss": loss}, metadata={"epoch": 0})
    ...     restored, record = checkpointer.restore(like=state)
    ...     [record.step for record in checkpointer.list()], checkpointer.best().step, record.step
    ([1, 2], 1, 2)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep: KeepPolicy | None = None,
        save_when: SavePolicy | None = None,
        metric: str | None = None,
        mode: str = "min",
        asynchronous: bool = True,
        max_pending: int = 1,
        shard_bytes: int | None = 5_000_000_000,
        group: mx.distributed.Group | None = None,
    ):
        caller = "Checkpointer"
        check_policies(caller, keep, save_when, metric, mode)
        self._writer = Writer(checks.integer(caller, "max_pending", max_pending, least=1))
        shard_bytes = tensors.check_limit(caller, shard_bytes)
        self.path = store.root_of(caller, path)
        self.save_when, self.metric, self.mode = save_when, metric, mode
        self._asynchronous = asynchronous
        self._ranks = together(caller, group)
        self._committer = Committer(self.path, keep, metric, mode, shard_bytes, self._ranks, asynchronous)
        self._closed, self._process, self._started = False, os.getpid(), time.time()

    def save(
        self,
        state: Tree,
        *,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        metadata: Metadata | None = None,
    ) -> None:
        """Save a state. A checkpoint of the same step is deleted after the new one is on the disk.

        The state is evaluated on this thread; the rest happens in the background. The next call of any
        method raises an error of the background, `close` at the latest. The save of that call still starts.

        Args:
            state: a tree of arrays, such as a `TrainState` or a dict that contains one.
            step: the step that names the checkpoint. The default is `state.step`.
            metrics: numbers or 0-d arrays, for policies and `best`. Those of rank 0 are stored.
            metadata: plain JSON values that the run needs to resume, such as the position in the data or
                early-stopping counters, or a function that returns them. Those of rank 0 are stored.

        Raises:
            TypeError: if a leaf is not an array or metadata is not plain; the message has the path.
            ValueError: if the metric that selects the best checkpoint is NaN.
            LockedError: if another writer uses the directory; the message has its pid and host.
            OSError: if the directory cannot be written, or an earlier save failed.
        """
        caller = "Checkpointer.save"
        self._check_open(caller)
        self._ranks.start(caller, state, metrics)
        given = (state, step, metrics, metadata, self.metric)
        step, numbers, values = self._ranks.agree(lambda: checked_facts(caller, *given))
        self._committer.begin(caller)
        job = prepared(self._committer, state, step, numbers, values, early=self._asynchronous)
        self._ranks.unreported = True
        failures = self._writer.make_room()
        if job is not None:
            self._writer.start(job)
        self._ranks.agree(lambda: raise_first(failures))
        if not self._asynchronous:
            self.wait()

    def save_if_due(
        self,
        state: Tree,
        *,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        metadata: Metadata | None = None,
        signalled: bool = False,
    ) -> bool:
        """Save if the policy `save_when` returns true; return whether it did.

        Pass `step` as a Python integer: without it, each call waits for the device to read `state.step`.
        Metrics that are arrays are read only if the policy reads them or the state is saved. If the metric
        that selects the best checkpoint is NaN, it is left out with a warning. A function `metadata` is
        called only if the state is saved. The first call takes the lock.
        """
        caller = "Checkpointer.save_if_due"
        self._check_open(caller)
        if self.save_when is None:
            raise checks.error(caller, "save_when must be given to Checkpointer, got None")
        step = checked_step(caller, state, step)
        quiet = self._ranks.size == 1 or (self._committer.begun and by_step(self.save_when))
        self._ranks.start(caller, metrics, after=state, quiet=quiet)
        self._committer.begin(caller)
        numbers = Numbers(caller, metrics)
        moment = Moment(step, time.time(), numbers, signalled, self._started)
        if not is_due(self.save_when, moment, self._committer.records(), self._ranks):
            return False
        kept = without_nan(caller, step, numbers, self.metric)
        self.save(state, step=step, metrics=kept, metadata=metadata)
        return True

    @overload
    def restore(
        self,
        step: int | None = None,
        *,
        like: None = None,
        cast: bool = False,
        partial: Iterable[str] = (),
        rename: Rename | None = None,
    ) -> Restored[Tree]: ...

    @overload
    def restore(
        self,
        step: int | None = None,
        *,
        like: Template,
        cast: bool = False,
        partial: Iterable[str] = (),
        rename: Rename | None = None,
    ) -> Restored[Template]: ...

    def restore(
        self,
        step: int | None = None,
        *,
        like: Tree = None,
        cast: bool = False,
        partial: Iterable[str] = (),
        rename: Rename | None = None,
    ) -> Restored[Tree]:
        """Return a state, with every byte verified, and the record it was saved with.

        Args:
            step: the step of the checkpoint. The default is the newest intact checkpoint: damaged ones are
                skipped with a `CorruptWarning` and stay on the disk.
            like: a tree with the structure, shapes and dtypes that the checkpoint must have. Without it,
                plain dicts, lists and tuples are returned.
            cast: accept other floating-point dtypes, as in `checkpoint.load`.
            partial: patterns of paths that may be missing, extra or of another shape, as in `load`.
            rename: from names in the checkpoint to names in `like`, as in `load`.

        Raises:
            FileNotFoundError: if the checkpoint does not exist, or there is none.
            CorruptError: if it, or every checkpoint, is damaged: bytes are wrong or files are missing.
            OSError: if the system cannot read a checkpoint: no permission, a disk error (EIO).
            ValueError: if the checkpoint differs from `like`; the message lists every path that differs.
            MemoryError: if there is not enough memory for the arrays. The checkpoint may be intact.

        Warns:
            HyperparameterWarning: if a constant hyperparameter differs from that of `like`, as in `load`.
        """
        self.wait()
        self._ranks.start("Checkpointer.restore", like)
        options = {"cast": cast, "partial": partial, "rename": rename}
        return restore_from(self.path, step, like, options, self._ranks)

    def list(self) -> list[Record]:
        """Return the records of all complete checkpoints in the order of saving; warn of damaged ones."""
        self._idle()
        return store.records("Checkpointer.list", self.path)

    def latest(self) -> Record | None:
        """Return the record of the checkpoint that was saved last, or `None`."""
        self._idle()
        return next(reversed(store.records("Checkpointer.latest", self.path)), None)

    def best(self, metric: str | None = None, mode: str | None = None) -> Record | None:
        """Return the record with the best metric, or `None`. Among equals, it is the one saved first."""
        caller = "Checkpointer.best"
        metric, mode = self.metric if metric is None else metric, self.mode if mode is None else mode
        if metric is None:
            raise checks.error(caller, "metric must be named, here or to Checkpointer")
        check_metric(caller, metric, mode)
        self._idle()
        return store.best(caller, self.path, metric, mode)

    def verify(self, step: int | None = None) -> store.Problems:
        """Read every byte of one checkpoint, or of all; return a list of problems by step.

        Raises:
            FileNotFoundError: if the checkpoint does not exist.
            OSError: if the system cannot read a file, except for an error of the disk (EIO), which is listed.
        """
        self._idle()
        return store.problems("Checkpointer.verify", self.path, step)

    def delete(self, step: int) -> None:
        """Delete one checkpoint, even if it is damaged or cannot be read.

        Raises:
            FileNotFoundError: if it does not exist.
            LockedError: if another writer uses the directory.
            OSError: if deleting fails. The message says if the checkpoint is gone and only files remain.
        """
        caller = "Checkpointer.delete"
        self._check_open(caller)
        self.wait()
        self._ranks.start(caller)
        self._committer.remove(caller, step)

    def wait(self) -> None:
        """Wait until all saves are on the disk; raise their errors."""
        if self._process == os.getpid():  # a forked child has none
            self._ranks.report("Checkpointer.wait", self._writer.wait)

    def close(self) -> None:
        """Wait until all saves are on the disk, release the lock, and raise errors of saves."""
        if self._process == os.getpid():
            self._ranks.report("Checkpointer.close", self._close)

    def _close(self) -> None:
        if self._closed or self._process != os.getpid():
            return  # A forked child has neither the thread nor the lock.
        self._closed = True
        # The writer's thread releases the lock after its last job, even if this call is interrupted.
        self._writer.close(self._committer.release)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close() if error is None else self._close()  # in an error the other ranks may be elsewhere
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"and a checkpoint failed: {failure}")  # The error of the body matters more.

    def _check_open(self, caller: str) -> None:
        if self._closed or self._process != os.getpid():
            wrong = "is closed" if self._closed else "belongs to the process that made it"
            raise checks.error(caller, f"the Checkpointer {wrong}: make another")

    def _idle(self) -> None:
        if self._ranks.size == 1:
            self.wait()
        elif self._process == os.getpid():
            self._writer.idle()  # a call of all ranks raises the errors
