"""Policies that decide when to save: pure functions `(moment, records) -> bool`."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from purestep._checkpoint.ranks.together import Together
from purestep._checkpoint.run.record import Moment, Record, best_of, check_metric
from purestep._core import checks

SavePolicy = Callable[[Moment, Sequence[Record]], bool]

_by_step: Any = weakref.WeakSet()  # policies that depend on the step alone


def check_policies(caller: str, keep: Any, save_when: Any, metric: str | None, mode: str) -> None:
    """Refuse policies that are not functions, and what `check_metric` refuses."""
    for label, policy in (("keep", keep), ("save_when", save_when)):
        if policy is not None:
            checks.function(caller, label, policy)
    check_metric(caller, "" if metric is None else metric, mode)


def save_every_steps(n: int) -> SavePolicy:
    """Save when the step is a multiple of `n`. A resumed run saves at the same steps.

    >>> policy = save_every_steps(100)
    >>> [policy(Moment(step, 0.0, {}, False, 0.0), []) for step in (0, 100, 150, 200)]
    [False, True, False, True]
    """
    n = checks.integer("save_every_steps", "n", n, least=1)

    def policy(moment: Moment, records: Sequence[Record]) -> bool:
        return moment.step > 0 and moment.step % n == 0

    _by_step.add(policy)
    return policy


def save_every_seconds(seconds: float) -> SavePolicy:
    """Save when `seconds` have passed since the last checkpoint, or since the run started.

    Checkpoints with a time in the future are ignored: the clock was set back after they were saved.

    >>> policy = save_every_seconds(60)
    >>> [policy(Moment(1, now, {}, False, 1000.0), []) for now in (1010.0, 1060.0)]
    [False, True]
    """
    seconds = checks.number("save_every_seconds", "seconds", seconds, above=0)

    def policy(moment: Moment, records: Sequence[Record]) -> bool:
        times = [moment.started, *(record.time for record in records)]
        return moment.time - max((time for time in times if time <= moment.time), default=0.0) >= seconds

    return policy


def save_on_best(metric: str, mode: str = "min") -> SavePolicy:
    """Save when a metric is better than in every checkpoint. NaN is never better.

    >>> policy = save_on_best("loss")
    >>> [policy(Moment(1, 0.0, {"loss": loss}, False, 0.0), []) for loss in (0.5, float("nan"))]
    [True, False]
    """
    check_metric("save_on_best", metric, mode)

    def policy(moment: Moment, records: Sequence[Record]) -> bool:
        value = moment.metrics.get(metric)
        if value is None or value != value:
            return False
        best = best_of(records, metric, mode)
        if not best:
            return True
        before = best[0].metrics[metric]
        return value < before if mode == "min" else value > before

    return policy


def save_on_signal() -> SavePolicy:
    """Save when the process received a signal to stop; see `checkpoint.signals`.

    >>> save_on_signal()(Moment(1, 0.0, {}, True, 0.0), [])
    True
    """
    return lambda moment, records: moment.signalled


def save_any(*policies: SavePolicy) -> SavePolicy:
    """Save when at least one of the policies returns true.

    >>> policy = save_any(save_every_steps(100), save_on_signal())
    >>> policy(Moment(7, 0.0, {}, True, 0.0), [])
    True
    """
    if not policies:
        raise checks.error("save_any", "policies must hold at least one, got none")
    for number, policy in enumerate(policies):
        checks.function("save_any", f"policies[{number}]", policy)

    def combined(moment: Moment, records: Sequence[Record]) -> bool:
        return any(policy(moment, records) for policy in policies)

    if all(map(by_step, policies)):
        _by_step.add(combined)
    return combined


def by_step(policy: SavePolicy) -> bool:
    """Tell whether a policy depends on the step alone."""
    try:
        return policy in _by_step
    except TypeError:  # it cannot be hashed
        return False


def is_due(policy: SavePolicy, moment: Moment, records: Sequence[Record], ranks: Together) -> bool:
    """Return what a policy decides; in a group, rank 0 decides for all.

    A signal to any rank counts. A policy of the step alone decides alike on all ranks, which then exchange
    nothing.
    """
    if ranks.size == 1 or by_step(policy):
        return policy(moment, records)

    def decided() -> tuple[bool, bool, bool]:
        if ranks.rank > 0:
            return False, False, moment.signalled
        signalled = moment._replace(signalled=True)
        return bool(policy(moment, records)), bool(policy(signalled, records)), moment.signalled

    found = ranks.collect(decided)
    return found[0][1] if any(signalled for *_, signalled in found) else found[0][0]
