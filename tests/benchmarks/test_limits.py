"""The time limit, and what ends a run early."""

import math
import signal
import time

import pytest

from benchmarks.harness import Limit, StoppedError


def test_without_seconds_there_is_no_limit():
    assert Limit().left() == math.inf
    assert Limit().share(0.5).left() == math.inf


def test_a_limit_keeps_time_for_the_results_and_a_share_is_of_what_is_left():
    begun = time.monotonic()
    assert 90 < Limit(100.0, begun).left() < 95
    assert 5 < Limit(8.0, begun).left() <= 6, "of a short one at most a quarter"
    assert 40 < Limit(100.0, begun).share(0.5).left() < 48
    assert Limit(1.0, begun - 2).left() == 0


def test_the_limit_ends_what_takes_too_long_and_says_which():
    begun = time.monotonic()
    with pytest.raises(StoppedError, match="limit of 0.2 s"), Limit(0.2).enforced():
        time.sleep(20)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("number", "why"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")], ids=str
)
def test_a_signal_stops_as_the_limit_does_and_handlers_are_put_back(number, why):
    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match=why), Limit().enforced():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_stop_is_no_failure_of_a_contestant():
    assert not issubclass(StoppedError, Exception)
