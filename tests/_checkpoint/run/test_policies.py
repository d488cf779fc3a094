"""Policies are functions of plain records: when to save, what to keep."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purestep._checkpoint.run import keeping
from purestep.checkpoint import (
    Moment,
    Record,
    keep_any,
    keep_best,
    keep_every,
    keep_last,
    save_any,
    save_every_seconds,
    save_every_steps,
    save_on_best,
    save_on_signal,
)


def record(step, time=0.0, **metrics):
    return Record(step, step, time, metrics, {}, {}, 0, Path())


def moment(step=1, time=0.0, signalled=False, **metrics):
    return Moment(step, time, metrics, signalled, 0.0)


LOSSES = [record(1, loss=3.0), record(2, loss=1.0), record(3), record(4, loss=math.nan), record(5, loss=1.0)]


def test_every_n_steps_counts_from_zero_and_does_not_save_the_beginning():
    assert [step for step in range(10) if save_every_steps(3)(moment(step), [])] == [3, 6, 9]


def test_every_t_seconds_counts_from_the_last_checkpoint_or_from_the_start():
    policy = save_every_seconds(10.0)
    assert [policy(moment(time=t), []) for t in (9.9, 10.0)] == [False, True]
    assert [policy(moment(time=t), [record(1, 4.0), record(2, 7.0)]) for t in (16.9, 17.0)] == [False, True]
    assert policy(moment(time=20.0), [record(1, 1e9)])  # saved before the clock was set back


@pytest.mark.parametrize(
    ("mode", "loss", "saves"),
    [
        ("min", 0.9, True),
        ("min", 1.0, False),
        ("min", math.nan, False),
        ("min", -math.inf, True),
        ("max", 3.1, True),
        ("max", 3.0, False),
    ],
)
def test_on_best_compares_with_every_checkpoint(mode, loss, saves):
    assert save_on_best("loss", mode)(moment(loss=loss), LOSSES) is saves


def test_on_best_without_the_metric_or_without_a_checkpoint():
    assert not save_on_best("loss")(moment(accuracy=1.0), [])
    assert save_on_best("loss")(moment(loss=1e9), [])


def test_any_saves_when_one_does():
    policy = save_any(save_every_steps(100), save_on_signal())
    assert [
        policy(moment(step, signalled=asked), []) for step, asked in ((7, False), (7, True), (100, False))
    ] == [
        False,
        True,
        True,
    ]


def test_what_to_keep():
    assert keep_last(2)(LOSSES) == {4, 5}
    assert keep_last(99)(LOSSES) == {1, 2, 3, 4, 5}
    assert keep_best(1, "loss")(LOSSES) == {2}  # of equals the earliest
    assert keep_best(2, "loss")(LOSSES) == {2, 5}
    assert keep_best(1, "loss", "max")(LOSSES) == {1}
    assert keep_best(9, "loss")(LOSSES) == {1, 2, 5}
    assert keep_every(2)(LOSSES) == {2, 4}
    assert keep_any(keep_last(1), keep_every(4))(LOSSES) == {4, 5}
    rolled_back = [Record(step, n, 0.0, {}, {}, {}, 0, Path()) for n, step in enumerate([100, 400, 500, 410])]
    assert keep_last(2)(rolled_back) == {500, 410}
    assert keeping.superfluous(rolled_back, lambda _: set()) == {100, 400, 500}


@given(
    losses=st.lists(st.none() | st.floats(allow_nan=True), min_size=1, max_size=12),
    kept=st.sets(st.integers(0, 11)),
    mode=st.sampled_from(["min", "max"]),
)
def test_the_newest_and_the_best_stay_whatever_the_policy_says(losses, kept, mode):
    records = [record(n, **({} if loss is None else {"loss": loss})) for n, loss in enumerate(losses)]
    gone = keeping.superfluous(records, lambda _: kept, "loss", mode)
    assert len(losses) - 1 not in gone
    assert not gone & kept
    rated = [(loss, n) for n, loss in enumerate(losses) if loss is not None and not math.isnan(loss)]
    if rated:
        extreme = min(rated)[0] if mode == "min" else max(rated)[0]
        assert min(n for loss, n in rated if loss == extreme) not in gone
    assert gone <= set(range(len(losses)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: keep_last(0), "keep_last: n .* 1, got 0"),
        (lambda: keep_every(True), "keep_every: n .* integer, got True"),
        (lambda: keep_best(1, "loss", "low"), "keep_best: mode .* min .*max, got 'low'"),
        (lambda: keep_any(), "keep_any: policies .* one, got none"),
        (lambda: save_any(), "save_any: policies .* one, got none"),
        (lambda: keep_any(3), r"keep_any: policies\[0\] .* callable, got 3"),
        (lambda: save_every_steps(0), "save_every_steps: n .* 1, got 0"),
        (lambda: save_every_seconds(math.inf), "save_every_seconds: seconds .* finite, got inf"),
        (lambda: save_on_best(7), "save_on_best: metric .* name .*got 7"),
        (lambda: save_any(None), r"save_any: policies\[0\] .* callable, got None"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises((ValueError, TypeError), match=f"^{message}$"):
        build()
