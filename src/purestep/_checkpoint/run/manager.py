"""A run's checkpoints: written in the background, complete or absent, restored from the newest intact one."""

import errno
import math
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.disk import atomic, device, lock, tensors
from purestep._checkpoint.disk.naming import check_path
from purestep._checkpoint.format.header import CorruptError, kind_of, problem
from purestep._checkpoint.restoring.restore import Rename, restore
from purestep._checkpoint.run import directory, store
from purestep._checkpoint.run.keeping import KeepPolicy, superfluous
from purestep._checkpoint.run.record import Moment, Numbers, Record, best_of, check_metric, plain, step_of
from purestep._checkpoint.run.saving import SavePolicy
from purestep._checkpoint.run.store import CorruptWarning
from purestep._checkpoint.run.writer import Writer
from purestep._core import checks, tree
from purestep._core.types import Tree
from purestep._steps.state import check_arrays

Problems = dict[int, list[str]]


class Restored(NamedTuple):
    """What `Checkpointer.restore` returns: the state, and the record it was saved with."""

    state: Tree
    record: Record


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

    >>> import purestep as ps, tempfile
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
        where = "Checkpointer"
        for label, policy in (("keep", keep), ("save_when", save_when)):
            if policy is not None:
                checks.function(where, label, policy)
        check_metric(where, "" if metric is None else metric, mode)
        max_pending = checks.integer(where, "max_pending", max_pending, least=1)
        shard_bytes = tensors.check_limit(where, shard_bytes)
        self.path = check_path(where, check_path(where, path).absolute())
        if kind_of(where, self.path) not in ("", "directory"):
            raise NotADirectoryError(f"{where}: path must be a directory, {self.path} is a file")
        self._keep = keep
        self._save_when = save_when
        self._metric, self._mode = metric, mode
        self._asynchronous = asynchronous
        self._shard_bytes = shard_bytes
        self._writer = Writer(max_pending)
        self._lock: lock.Lock | None = None
        self._listed = False
        self._closed, self._process = False, os.getpid()
        self._started = time.time()
        # Filled once the lock is taken: then nobody else changes what is there.
        self._complete: dict[int, Record] = {}
        self._pending: dict[int, Record] = {}
        self._serial = 0

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
        where = "Checkpointer.save"
        self._check_open(where)
        check_arrays(where, "state", state)
        step = step_of(where, state, step)
        numbers = dict(Numbers(where, metrics))
        if self._metric is not None and math.isnan(numbers.get(self._metric, 0.0)):
            raise checks.error(
                where, f"metrics[{self._metric!r}] is NaN and can be no best value: save without this metric"
            )
        values = plain(where, "metadata", {} if metadata is None else metadata)
        self._begin(where)
        arrays, spec = tensors.snapshot(state, where), tree.to_plain(tree.spec(state))
        self._serial += 1
        record = Record(step, self._serial, time.time(), numbers, values, {}, 0, self.path)
        self._pending[step] = record
        self._writer.submit(lambda: self._write(arrays, spec, record))
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
        where = "Checkpointer.save_if_due"
        self._check_open(where)
        if self._save_when is None:
            raise checks.error(where, "there is no policy: give Checkpointer save_when")
        step = step_of(where, state, step)
        self._begin(where)
        numbers = Numbers(where, metrics)
        moment = Moment(step, time.time(), numbers, signalled, self._started)
        if not self._save_when(moment, [*{**self._complete, **self._pending}.values()]):
            return False
        kept = dict(numbers)
        if self._metric is not None and math.isnan(kept.get(self._metric, 0.0)):
            # Refused, a loss of NaN would cost the last checkpoint of a run that is asked to stop.
            del kept[self._metric]
            warnings.warn(f"{where}: step {step} is saved without {self._metric}, which is NaN", stacklevel=2)
        self.save(state, step=step, metrics=kept, metadata=metadata)
        return True

    def restore(
        self,
        step: int | None = None,
        *,
        like: Tree = None,
        cast: bool = False,
        partial: Iterable[str] = (),
        rename: Rename | None = None,
    ) -> Restored:
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
        where = "Checkpointer.restore"
        self._settle(where)
        partial = partial if isinstance(partial, str) else list(partial)  # which serves several tries
        options: dict[str, Any] = {"cast": cast, "partial": partial, "rename": rename}
        if step is not None:
            step = checks.integer(where, "step", step, least=0)
            manifest = directory.read(where, store.existing(where, self.path, step))
            return Restored(restore(where, manifest.stored(where), like, **options), manifest.record)
        for _ in range(store.ATTEMPTS):
            sound, damaged = store.manifests(where, self.path)
            if not sound and not damaged:
                raise FileNotFoundError(f"{where}: there is no checkpoint in {self.path}")
            for manifest in reversed(sound):
                try:
                    state = restore(where, manifest.stored(where), like, **options)
                except (CorruptError, OSError) as error:
                    if not kind_of(where, manifest.record.path):
                        break  # its writer has deleted it, so there are newer ones
                    if isinstance(error, OSError):
                        raise  # the checkpoint may be sound
                    damaged.append(problem(where, error))
                    continue
                if damaged:
                    used, listed = manifest.record.step, "\n  ".join(damaged)
                    message = f"{where}: used step {used}, passed over\n  {listed}"
                    warnings.warn(message, CorruptWarning, stacklevel=2)
                return Restored(state, manifest.record)
            else:
                raise CorruptError(f"{where}: no checkpoint is intact:\n  " + "\n  ".join(damaged))
        raise OSError(f"{where}: {self.path} is cleaned up faster than it can be read")

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
        where = "Checkpointer.best"
        metric = self._metric if metric is None else metric
        if metric is None:
            raise checks.error(where, "metric must be named, here or to Checkpointer")
        mode = self._mode if mode is None else mode
        check_metric(where, metric, mode)
        self._settle(where)
        return next(iter(best_of(store.records(where, self.path), metric, mode)), None)

    def verify(self, step: int | None = None) -> Problems:
        """Read every byte of one checkpoint, or of all; return the problems of each by step.

        An error of the disk (EIO) is listed with the others, as what it is: `cannot be read`.

        Raises:
            FileNotFoundError: if there is no such checkpoint.
            OSError: if one cannot be read for another reason, such as too many open files.
        """
        where = "Checkpointer.verify"
        self._settle(where)
        if step is not None:
            step = checks.integer(where, "step", step, least=0)
            store.existing(where, self.path, step)
        problems: Problems = {}
        for number in store.steps(self.path) if step is None else [step]:
            for entry in store.of_step(self.path, number)[-1:]:
                try:
                    found = directory.read(where, entry).verify(where)
                except (ValueError, OSError) as error:
                    listed = not isinstance(error, OSError) or error.errno == errno.EIO
                    if not listed and kind_of(where, entry, follow=False):
                        raise
                    found = [problem(where, error)]
                if kind_of(where, entry, follow=False):  # otherwise its writer has deleted it meanwhile
                    problems[number] = found
        return problems

    def delete(self, step: int) -> None:
        """Delete one checkpoint, damaged or not, also one that cannot be read.

        Raises:
            FileNotFoundError: if there is none.
            LockedError: if another writer has the directory.
            OSError: if that fails; it says so if the checkpoint is gone, and only its files remain.
        """
        where = "Checkpointer.delete"
        self._check_open(where)
        self._settle(where)
        step = checks.integer(where, "step", step, least=0)
        store.existing(where, self.path, step)
        if self._lock is None:
            self._lock = store.claim(where, self.path)
        for entry in store.of_step(self.path, step):
            store.remove(entry)
        self._complete.pop(step, None)

    def wait(self) -> None:
        """Wait until everything that was saved is on the disk, and raise what failed."""
        self._settle("Checkpointer.wait")

    def close(self) -> None:
        """Wait, raise what failed, and let another writer in."""
        if self._process != os.getpid() or self._closed:
            return  # a forked child has neither the thread nor the lock
        self._closed = True
        # By the writer's thread, after its last job: an interrupted close must not let another writer in.
        self._writer.close(self._release)

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

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _check_open(self, where: str) -> None:
        if self._closed:
            raise checks.error(where, "the Checkpointer is closed: make another")
        if self._process != os.getpid():
            raise checks.error(where, "the Checkpointer belongs to the process that made it: make another")

    def _settle(self, where: str) -> None:
        """Wait for what is being written; a forked child has no part in that."""
        if self._process == os.getpid():
            self._writer.wait()

    def _begin(self, where: str) -> None:
        """Become the directory's only writer, and learn what is there."""
        if not self._listed:
            claimed = store.claim(where, self.path) if self._lock is None else self._lock
            try:
                self._complete = {r.step: r for r in store.records(where, self.path, stacklevel=4)}
            except BaseException:
                if self._lock is None:
                    claimed.release()  # a listing that was not read in full would give out a serial again
                raise
            self._serial = max((r.serial for r in self._complete.values()), default=0)
            self._lock, self._listed = claimed, True

    def _write(self, arrays: dict[str, mx.array], spec: Any, record: Record) -> None:
        """Write one checkpoint and delete the superfluous: the work of the background thread."""
        where, step = "Checkpointer.save", record.step
        shown = {k: v if math.isfinite(v) else repr(v) for k, v in record.metrics.items()}
        facts = {**record._asdict(), "metrics": shown}
        facts = {name: facts[name] for name in ("step", "serial", "time", "metrics", "metadata")}
        try:
            if self._lock is not None:
                self._lock.check(where)
            path = store.put(
                self.path, step, lambda place: directory.write(place, arrays, spec, facts, self._shard_bytes)
            )
        except lock.LockedError:
            raise
        except atomic.NotFlushedError as error:
            # The copy counts. Older ones stay: a crash may leave these alone.
            self._complete[step] = record._replace(path=error.path)
            raise OSError(error.errno, f"Checkpointer: step {step} is saved: {error.strerror}") from error
        except Exception as error:
            raise _failure(
                error, f"step {step} was not saved: {{}}; earlier checkpoints are intact"
            ) from error
        finally:
            self._pending.pop(step, None)
            arrays.clear()
            device.trim()
        self._complete[step] = record._replace(path=path)
        try:
            self._complete[step] = directory.read(where, path).record
            self._clean(step, path)
        except Exception as error:
            raise _failure(error, f"step {step} is saved, but cleaning up after it failed: {{}}") from error

    def _clean(self, step: int, path: Path) -> None:
        """Delete older checkpoints of the same step, and those that are not kept."""
        superseded = [entry for entry in store.of_step(self.path, step) if entry != path]
        for entry in superseded:
            store.remove(entry)
        if self._keep is None:
            return
        records = sorted(self._complete.values(), key=lambda record: record.serial)
        for old in superfluous(records, self._keep, self._metric, self._mode):
            for entry in store.of_step(self.path, old):
                store.remove(entry)
            del self._complete[old]


def _failure(error: Exception, text: str) -> Exception:
    """Return an error of the background, of the system's kind and number if it is one of the system's."""
    if not isinstance(error, OSError):
        return RuntimeError("Checkpointer: " + text.replace("{}", f"{error!r}"))
    if error.errno is None:
        return OSError("Checkpointer: " + text.replace("{}", str(error)))
    named = f": {os.fspath(error.filename)}" if error.filename else ""
    return OSError(error.errno, "Checkpointer: " + text.replace("{}", f"{error.strerror}{named}"))
