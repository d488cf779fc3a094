"""A run's checkpoints: written in the background, complete or absent, restored from the newest intact one."""

import math
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, overload

from purestep._checkpoint.disk import tensors
from purestep._checkpoint.disk.naming import check_path
from purestep._checkpoint.format.header import kind_of
from purestep._checkpoint.restoring.restore import Rename, Template
from purestep._checkpoint.run import directory, store
from purestep._checkpoint.run.committing import Committer
from purestep._checkpoint.run.keeping import KeepPolicy
from purestep._checkpoint.run.newest import Restored, newest, restored
from purestep._checkpoint.run.record import Moment, Numbers, Record, best_of, check_metric, plain, step_of
from purestep._checkpoint.run.saving import SavePolicy
from purestep._checkpoint.run.writer import Writer
from purestep._core import checks, tree
from purestep._core.types import Tree
from purestep._steps.state import check_arrays


class Checkpointer:
    """The checkpoints of one run, a directory each: `step_00000100`.

    A state is immutable, so a save takes hold of its arrays and returns; one thread writes them, with no
    copy, while training goes on. A checkpoint appears whole, by one rename, after everything in it is
    on the disk. Reading never changes or deletes anything and needs no right to write.

    Checkpoints are ordered by when they were saved: after going back to step 400 of 500, the newest is the
    410 saved next. Use it as a context manager, or call `close`: both wait for what is being written. It
    belongs to one thread of one process.

    Args:
        path: the directory of all checkpoints; made by the first save.
        keep: what to keep when a save has succeeded, one of `keep_last, keep_best, keep_every, keep_any`
            or your own function from records to the steps that stay; `None` keeps everything. The newest
            stays whatever it says, and the best by `metric`. Damaged ones are never deleted.
        save_when: when `save_if_due` saves, one of `save_every_steps, save_every_seconds, save_on_best,
            save_on_signal, save_any` or your own function `(moment, records) -> bool`.
        metric: the metric that `best` looks at.
        mode: `min` if a smaller metric is better, or `max`.
        asynchronous: write in the background; otherwise `save` returns when the checkpoint is there.
        max_pending: saves under way or waiting, each of which keeps its arrays in memory; `save` waits
            for room.
        shard_bytes: the most that one file holds.

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
    ):
        caller = "Checkpointer"
        for label, policy in (("keep", keep), ("save_when", save_when)):
            if policy is not None:
                checks.function(caller, label, policy)
        check_metric(caller, "" if metric is None else metric, mode)
        max_pending = checks.integer(caller, "max_pending", max_pending, least=1)
        shard_bytes = tensors.check_limit(caller, shard_bytes)
        self.path = check_path(caller, check_path(caller, path).absolute())
        if kind_of(caller, self.path) not in ("", "directory"):
            raise NotADirectoryError(f"{caller}: path must be a directory, {self.path} is a file")
        self._save_when = save_when
        self._metric, self._mode = metric, mode
        self._asynchronous = asynchronous
        self._writer = Writer(max_pending)
        self._committer = Committer(self.path, keep, metric, mode, shard_bytes)
        self._closed, self._process = False, os.getpid()
        self._started = time.time()

    def save(
        self,
        state: Tree,
        *,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Save a state; a checkpoint of the same step is deleted once the new one is on the disk.

        Evaluates the state on this thread. Everything else happens in the background. A failure there is
        raised by the next call of this object, at the latest by `close`; the next save is begun all the same.

        Args:
            state: a tree of arrays: a `TrainState`, or a dict of one and more.
            step: names the checkpoint; `state.step` if the state has one.
            metrics: numbers or 0-d arrays, for policies and `best`.
            metadata: plain JSON values that the run needs to go on: epoch, position in the data, samples
                seen, best value, counters of early stopping, history. `restore` gives them back.

        Raises:
            TypeError: for a leaf that is not an array, or metadata that is not plain, with its path.
            ValueError: for a metric that is NaN and should decide which checkpoint is best.
            LockedError: if another writer has the directory, with its pid and host.
            OSError: if the directory cannot be written, or an earlier save could not.
        """
        caller = "Checkpointer.save"
        self._check_open(caller)
        check_arrays(caller, "state", state)
        step = step_of(caller, state, step)
        numbers = dict(Numbers(caller, metrics))
        if self._metric is not None and math.isnan(numbers.get(self._metric, 0.0)):
            raise checks.error(
                caller, f"metrics[{self._metric!r}] is NaN and can be no best value: save without this metric"
            )
        values = plain(caller, "metadata", {} if metadata is None else metadata)
        self._committer.begin(caller)
        arrays, spec = tensors.snapshot(state, caller), tree.to_plain(tree.spec(state))
        record = self._committer.announce(step, numbers, values)
        commit = self._committer.commit
        self._writer.submit(lambda: commit(arrays, spec, record))
        if not self._asynchronous:
            self._writer.wait()

    def save_if_due(
        self,
        state: Tree,
        *,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        signalled: bool = False,
    ) -> bool:
        """Save if the policy `save_when` says so; tell whether it did.

        Give `step` as a Python integer: otherwise each call waits for the device to read `state.step`.
        Metrics that are arrays are read only when the policy looks at them, or saves; the one that decides
        which is best is left out, with a warning, when it is NaN. The first call takes the directory's lock.
        """
        caller = "Checkpointer.save_if_due"
        self._check_open(caller)
        if self._save_when is None:
            raise checks.error(caller, "there is no policy: give Checkpointer save_when")
        step = step_of(caller, state, step)
        self._committer.begin(caller)
        numbers = Numbers(caller, metrics)
        moment = Moment(step, time.time(), numbers, signalled, self._started)
        if not self._save_when(moment, self._committer.records()):
            return False
        kept = dict(numbers)
        if self._metric is not None and math.isnan(kept.get(self._metric, 0.0)):
            # Refused, a loss of NaN would cost the last checkpoint of a run that is asked to stop.
            del kept[self._metric]
            warnings.warn(
                f"{caller}: step {step} is saved without {self._metric}, which is NaN", stacklevel=2
            )
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
        """Return a state, every byte of it verified, and the record it was saved with.

        Only bytes that were read and are wrong, and files that are missing, are damage. Whether a checkpoint
        that the system cannot read now, be it for an error of the disk (EIO), is sound, nobody knows: an
        older one is returned only if `step` names it.

        Args:
            step: which checkpoint. Without it, the newest intact one: a damaged one is passed over with
                a `CorruptWarning`, and stays where it is.
            like: a tree with the structure, shapes and dtypes that the checkpoint must have; without it,
                plain dicts, lists and tuples are returned.
            cast: accept other floating-point dtypes, as in `checkpoint.load`.
            partial: patterns of paths that may be missing, extra or of another shape, as in `load`.
            rename: from names in the checkpoint to names in the template, as in `load`.

        Raises:
            FileNotFoundError: if there is no such checkpoint, or none at all.
            CorruptError: if it, or every one, is damaged.
            OSError: if one cannot be read for another reason than damage, such as too many open
                files, a missing permission or an error of the disk: no older one is taken instead.
            ValueError: if it differs from the template, with every differing path.
            MemoryError: if there is no room for the arrays, which does not mean damage.

        Warns:
            HyperparameterWarning: for another constant hyperparameter than that of `like`, as in `load`.
        """
        caller = "Checkpointer.restore"
        self._settle(caller)
        partial = partial if isinstance(partial, str) else list(partial)  # which serves several tries
        options: dict[str, Any] = {"cast": cast, "partial": partial, "rename": rename}
        if step is not None:
            step = checks.integer(caller, "step", step, least=0)
            return restored(
                caller, directory.read(caller, store.existing(caller, self.path, step)), like, options
            )
        return newest(caller, self.path, like, options)

    def list(self) -> list[Record]:
        """Return the record of every complete checkpoint, in the order of saving; warn of damaged ones."""
        self._settle("Checkpointer.list")
        return store.records("Checkpointer.list", self.path)

    def latest(self) -> Record | None:
        """Return the record of the checkpoint saved last, or `None`."""
        self._settle("Checkpointer.latest")
        return next(reversed(store.records("Checkpointer.latest", self.path)), None)

    def best(self, metric: str | None = None, mode: str | None = None) -> Record | None:
        """Return the record with the best metric, or `None`; of equals the one saved first."""
        caller = "Checkpointer.best"
        metric = self._metric if metric is None else metric
        if metric is None:
            raise checks.error(caller, "metric must be named, here or to Checkpointer")
        mode = self._mode if mode is None else mode
        check_metric(caller, metric, mode)
        self._settle(caller)
        return next(iter(best_of(store.records(caller, self.path), metric, mode)), None)

    def verify(self, step: int | None = None) -> store.Problems:
        """Read every byte of one checkpoint, or of all; return the problems of each by step.

        An error of the disk (EIO) is listed with the others, as what it is: `cannot be read`.

        Raises:
            FileNotFoundError: if there is no such checkpoint.
            OSError: if one cannot be read for another reason, such as too many open files.
        """
        caller = "Checkpointer.verify"
        self._settle(caller)
        if step is not None:
            step = checks.integer(caller, "step", step, least=0)
            store.existing(caller, self.path, step)
        return store.problems(caller, self.path, step)

    def delete(self, step: int) -> None:
        """Delete one checkpoint, damaged or not, also one that cannot be read.

        Raises:
            FileNotFoundError: if there is none.
            LockedError: if another writer has the directory.
            OSError: if that fails; it says so if the checkpoint is gone, and only its files remain.
        """
        caller = "Checkpointer.delete"
        self._check_open(caller)
        self._settle(caller)
        step = checks.integer(caller, "step", step, least=0)
        store.existing(caller, self.path, step)
        self._committer.claim(caller)
        self._committer.remove(step)

    def wait(self) -> None:
        """Wait until everything that was saved is on the disk, and raise what failed."""
        self._settle("Checkpointer.wait")

    def close(self) -> None:
        """Wait, raise what failed, and let another writer in."""
        if self._process != os.getpid() or self._closed:
            return  # a forked child has neither the thread nor the lock
        self._closed = True
        # By the writer's thread, after its last job: an interrupted close must not let another writer in.
        self._writer.close(self._committer.release)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"and a checkpoint failed: {failure}")  # the body's error is the one to see

    def _check_open(self, caller: str) -> None:
        if self._closed:
            raise checks.error(caller, "the Checkpointer is closed: make another")
        if self._process != os.getpid():
            raise checks.error(caller, "the Checkpointer belongs to the process that made it: make another")

    def _settle(self, caller: str) -> None:
        """Wait for what is being written; a forked child has no part in that."""
        if self._process == os.getpid():
            self._writer.wait()
