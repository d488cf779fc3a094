"""The clock, on a time that the test sets: every moment belongs to one part."""

import contextlib
import random

import pytest

from purestep._loop.profiling.clock import OFF, Clock


class Time:
    """A time that passes only when it is told to; `busy` is the part in which the thread worked."""

    def __init__(self):
        self.now = self.busy = 0.0

    def work(self, seconds):
        self.now += seconds
        self.busy += seconds

    def sleep(self, seconds):
        self.now += seconds


def clock_of(time, steps=3, warmup=1, **options):
    clock = Clock(steps, warmup, now=lambda: time.now, busy=lambda: time.busy, **options)
    clock.begin()
    return clock


def test_a_moment_belongs_to_the_innermost_part_and_outside_of_all_to_other():
    time = Time()
    clock = clock_of(time)
    time.work(1.0)
    with clock.part("callbacks"):
        time.work(2.0)
        with clock.part("mine"):
            time.work(4.0)
            with clock.part("callbacks"):
                time.work(8.0)
        time.work(16.0)
    time.work(32.0)
    clock.lap()
    assert clock.rows[0].parts == {"other": 33.0, "callbacks": 26.0, "mine": 4.0}
    assert clock.rows[0].seconds == 63.0


def test_the_time_in_which_the_thread_sleeps_in_a_dispatch_is_the_queue():
    time = Time()
    clock = clock_of(time)
    clock.dispatching()
    time.work(1.0)
    time.sleep(2.0)
    clock.dispatched()
    time.sleep(4.0)
    clock.lap()
    assert clock.rows[0].parts == {"other": 4.0, "dispatch": 1.0, "queue": 2.0}


def test_a_processor_clock_that_is_ahead_of_the_wall_clock_gives_no_negative_part():
    time = Time()
    clock = clock_of(time)
    clock.dispatching()
    time.busy += 1.0
    time.now += 0.5
    clock.dispatched()
    clock.lap()
    assert (clock.rows[0].parts["dispatch"], clock.rows[0].parts["queue"]) == (0.5, 0.0)


def test_the_parts_add_up_to_the_wall_clock_whatever_is_nested():
    drawn, time = random.Random(0), Time()
    clock = clock_of(time, steps=40)

    for _ in range(41):
        entered = []
        for _ in range(drawn.randrange(20)):
            time.work(drawn.random())
            if entered and drawn.random() < 0.5:
                entered.pop().__exit__(None, None, None)
            else:
                entered.append(clock.part(drawn.choice("abc")))
                entered[-1].__enter__()
        clock.lap()
        while entered:  # these parts go on in the next step
            entered.pop().__exit__(None, None, None)
    assert len(clock.rows) == 41
    assert sum(row.seconds for row in clock.rows) == pytest.approx(clock._begun)
    for row in clock.rows:
        assert sum(row.parts.values()) == pytest.approx(row.seconds, abs=1e-12)


def test_an_error_ends_its_part():
    time = Time()
    clock = clock_of(time)
    with contextlib.suppress(KeyError), clock.part("data"):
        time.work(1.0)
        raise KeyError
    time.work(2.0)
    clock.lap()
    assert clock.rows[0].parts == {"data": 1.0, "other": 2.0}


def test_the_clock_stands_after_its_steps_and_reads_no_time():
    time = Time()
    clock = clock_of(time, steps=2, warmup=1)
    for _ in range(3):
        clock.lap()
    for name in ("now", "busy"):
        setattr(clock, name, None)  # a call would raise
    with clock.part("data"):
        clock.at("wait")
        clock.dispatching()
        clock.dispatched()
        clock.lap()
    assert [row.step for row in clock.rows] == [1, 2, 3]


def test_starting_is_called_before_the_first_measured_step_and_its_time_is_in_no_step():
    time, calls = Time(), []

    def started():
        calls.append(("started", len(clock.rows)))
        time.work(100.0)

    clock = clock_of(time, steps=2, warmup=2, started=started, ended=lambda: calls.append(("ended", 4)))
    for _ in range(6):
        time.work(1.0)
        clock.lap()
    clock.end()
    assert calls == [("started", 2), ("ended", 4)]
    assert [row.seconds for row in clock.rows] == [1.0, 1.0, 1.0, 1.0]


def test_the_traces_of_a_compiled_step_are_counted_by_step():
    class Step:
        traces = 5

    time, step = Time(), Step()
    clock = clock_of(time)
    clock.begin(step)
    for made in (1, 0, 2):
        step.traces += made
        clock.lap()
    assert [row.traces for row in clock.rows] == [1, 0, 2]


def test_a_block_returns_to_the_part_of_the_loop_that_it_lies_in():
    time = Time()
    clock = clock_of(time)
    clock.at("loop body")
    with clock.part("mine"):
        time.work(1.0)
    time.work(2.0)
    clock.at("data")
    time.work(4.0)
    clock.lap()
    assert clock.rows[0].parts == {"other": 0.0, "loop body": 2.0, "mine": 1.0, "data": 4.0}


def test_the_clock_of_a_run_without_a_profile_has_no_memory():
    OFF.begin()
    OFF.at("data")
    OFF.dispatching()
    OFF.dispatched()
    OFF.lap()
    assert not hasattr(OFF, "rows")
    assert not hasattr(OFF, "__dict__")
