"""Policies that select the checkpoints to keep: pure functions from all records to steps."""

from collections.abc import Callable, Sequence

from purestep._checkpoint.run.record import Record, best_of, check_metric
from purestep._core import checks

KeepPolicy = Callable[[Sequence[Record]], set[int]]
"""A function from the records of all checkpoints to the steps to keep. The newest one is always kept."""


def keep_last(n: int) -> KeepPolicy:
    """Keep the `n` checkpoints that were saved last. After a rollback, an abandoned branch is older.

    >>> from pathlib import Path
    >>> records = [Record(step, step, 0.0, {"loss": 1 / step}, {}, {}, 0, Path()) for step in (10, 20, 30)]
    >>> sorted(keep_last(2)(records))
    [20, 30]
    """
    n = checks.integer("keep_last", "n", n, least=1)
    return lambda records: {r.step for r in sorted(records, key=lambda r: r.serial)[-n:]}


def keep_best(k: int, metric: str, mode: str = "min") -> KeepPolicy:
    """Keep the `k` checkpoints with the best metric. Checkpoints without it, or with NaN, do not count.

    >>> from pathlib import Path
    >>> records = [Record(step, step, 0.0, {"loss": 1 / step}, {}, {}, 0, Path()) for step in (10, 20, 30)]
    >>> keep_best(1, "loss")(records), keep_best(1, "loss", "max")(records)
    ({30}, {10})
    """
    k = checks.integer("keep_best", "k", k, least=1)
    check_metric("keep_best", metric, mode)
    return lambda records: {record.step for record in best_of(records, metric, mode)[:k]}


def keep_every(n: int) -> KeepPolicy:
    """Keep the checkpoints whose step is a multiple of `n`.

    >>> from pathlib import Path
    >>> keep_every(20)([Record(step, step, 0.0, {}, {}, {}, 0, Path()) for step in (10, 20, 30)])
    {20}
    """
    n = checks.integer("keep_every", "n", n, least=1)
    return lambda records: {record.step for record in records if record.step % n == 0}


def keep_any(*policies: KeepPolicy) -> KeepPolicy:
    """Keep the checkpoints that at least one of the policies keeps.

    >>> from pathlib import Path
    >>> records = [Record(step, step, 0.0, {}, {}, {}, 0, Path()) for step in (10, 20, 30)]
    >>> sorted(keep_any(keep_last(1), keep_every(20))(records))
    [20, 30]
    """
    if not policies:
        raise checks.error("keep_any", "policies must hold at least one, got none")
    for number, policy in enumerate(policies):
        checks.function("keep_any", f"policies[{number}]", policy)
    return lambda records: set().union(*(policy(records) for policy in policies))


def superfluous(
    records: Sequence[Record], keep: KeepPolicy, metric: str | None = None, mode: str = "min"
) -> set[int]:
    """Return the steps to delete. The newest checkpoint and the best by `metric` are never among them.

    >>> from pathlib import Path
    >>> records = [Record(step, step, 0.0, {"loss": step}, {}, {}, 0, Path()) for step in (10, 20, 30)]
    >>> superfluous(records, lambda records: set(), "loss")
    {20}
    """
    kept = set(keep(records)) | {r.step for r in sorted(records, key=lambda r: r.serial)[-1:]}
    if metric is not None:
        kept |= {record.step for record in best_of(records, metric, mode)[:1]}
    return {record.step for record in records} - kept
