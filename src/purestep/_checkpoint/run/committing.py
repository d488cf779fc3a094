"""The only writer of a run's directory: takes the lock, writes checkpoints, deletes superfluous ones."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk import atomic, lock
from purestep._checkpoint.ranks.shared import check_alike
from purestep._checkpoint.ranks.together import Together
from purestep._checkpoint.run import directory, store
from purestep._checkpoint.run.keeping import KeepPolicy, superfluous
from purestep._checkpoint.run.record import Record
from purestep._core import checks

NOT_SAVED = "step {step} was not saved: {}; earlier checkpoints are intact"


class Committer:
    """Writes the checkpoints of one directory and keeps their records.

    `commit` runs on the background thread. The other methods run on the thread of the caller.

    Args:
        path: the directory of all checkpoints.
        keep: the policy that selects the checkpoints to keep, or `None` to keep all.
        metric: the metric whose best checkpoint is always kept.
        mode: `min` or `max`.
        shard_bytes: the largest size of one file.
        ranks: that save together. Rank 0 alone has the lock and the records.
        asynchronous: whether saves are in the background; equal on all ranks.
    """

    def __init__(
        self,
        path: Path,
        keep: KeepPolicy | None,
        metric: str | None,
        mode: str,
        shard_bytes: int | None,
        ranks: Together,
        asynchronous: bool,
    ):
        self.path, self.ranks, self._asynchronous = path, ranks, asynchronous
        self._keep = keep
        self._metric, self._mode = metric, mode
        self.shard_bytes = shard_bytes
        self._lock: lock.Lock | None = None
        self.begun = False
        # Filled after the lock is taken: from then on no other process changes the directory.
        self._complete: dict[int, Record] = {}
        self._pending: dict[int, Record] = {}
        self._serial = 0

    def begin(self, caller: str) -> None:
        """Take the lock and read the records of all checkpoints, once. Every rank calls it."""
        if self.begun:
            return
        self.ranks.agree(lambda: self._begin(caller))
        if self.ranks.size > 1:
            options = {"asynchronous": bool(self._asynchronous), "shard_bytes": self.shard_bytes}
            check_alike(caller, self.path, options, self.ranks)
        self.begun = True

    def _begin(self, caller: str) -> None:
        if self.ranks.rank == 0:
            claimed = store.claim(caller, self.path) if self._lock is None else self._lock
            try:
                self._complete = {r.step: r for r in store.records(caller, self.path, stacklevel=7)}
            except BaseException:
                if self._lock is None:
                    claimed.release()  # After an incomplete listing a serial would be used twice.
                raise
            self._serial = max((r.serial for r in self._complete.values()), default=0)
            self._lock = claimed

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def records(self) -> list[Record]:
        """Return the records of all checkpoints, including those that are being written."""
        return [*{**self._complete, **self._pending}.values()]

    def announce(self, step: int, metrics: dict[str, float], metadata: dict[str, Any]) -> Record:
        """Return the record of a checkpoint that will be written."""
        self._serial += 1
        record = Record(step, self._serial, time.time(), metrics, metadata, {}, 0, self.path)
        self._pending[step] = record
        return record

    def remove(self, caller: str, step: int) -> None:
        """Take the lock and delete every checkpoint of a step. Every rank calls it."""
        found = self.ranks.collect(lambda: checks.integer(caller, "step", step, least=0))
        for rank, other in enumerate(found):
            if other != found[0]:
                got = f"{found[0]} on rank 0 and {other} on rank {rank}"
                raise checks.error(caller, f"step must be equal on all ranks, got {got}")
        self.ranks.agree(lambda: self._remove(caller, step) if self.ranks.rank == 0 else None)

    def _remove(self, caller: str, step: int) -> None:
        store.existing(caller, self.path, step)
        if self._lock is None:
            self._lock = store.claim(caller, self.path)
        for entry in store.of_step(self.path, step):
            store.remove(entry)
        self._complete.pop(step, None)

    def commit(self, fill: Callable[[Path], None], record: Record, hidden: Path | None = None) -> None:
        """Write one checkpoint, then delete the superfluous ones.

        Args:
            fill: writes the files of the checkpoint into a directory.
            record: the record.
            hidden: the directory to fill, if the other ranks write there too.
        """
        caller, step = "Checkpointer.save", record.step
        try:
            if self._lock is not None:
                self._lock.check(caller)
            path = store.put(self.path, step, fill, hidden)
        except lock.LockedError:
            raise
        except atomic.NotFlushedError as error:
            # The new checkpoint counts, but older ones stay: a crash may undo the rename.
            self._complete[step] = record._replace(path=error.path)
            raise OSError(error.errno, f"Checkpointer: step {step} is saved: {error.strerror}") from error
        except Exception as error:
            raise failure(error, NOT_SAVED.replace("{step}", str(step))) from error
        finally:
            self._pending.pop(step, None)
        self._complete[step] = record._replace(path=path)
        try:
            self._complete[step] = directory.read(caller, path).record
            self._clean(step, path)
        except Exception as error:
            raise failure(error, f"step {step} is saved, but cleaning up after it failed: {{}}") from error

    def _clean(self, step: int, path: Path) -> None:
        """Delete older checkpoints of the same step, and those that the policy does not keep."""
        for entry in store.of_step(self.path, step):
            if entry != path:
                store.remove(entry)
        if self._keep is None:
            return
        records = sorted(self._complete.values(), key=lambda record: record.serial)
        for old in superfluous(records, self._keep, self._metric, self._mode):
            for entry in store.of_step(self.path, old):
                store.remove(entry)
            del self._complete[old]


def facts_of(record: Record) -> dict[str, Any]:
    """Return the facts of a record that its manifest holds, as plain values."""
    shown = {k: v if math.isfinite(v) else repr(v) for k, v in record.metrics.items()}
    facts = {**record._asdict(), "metrics": shown}
    return {name: facts[name] for name in ("step", "serial", "time", "metrics", "metadata")}


def failure(error: Exception, text: str) -> Exception:
    """Return the error that reports a failed commit; an `OSError` keeps its class and number."""
    if not isinstance(error, OSError):
        return RuntimeError("Checkpointer: " + text.replace("{}", f"{error!r}"))
    if error.errno is None:
        return OSError("Checkpointer: " + text.replace("{}", str(error)))
    named = f": {os.fspath(error.filename)}" if error.filename else ""
    return OSError(error.errno, "Checkpointer: " + text.replace("{}", f"{error.strerror}{named}"))
