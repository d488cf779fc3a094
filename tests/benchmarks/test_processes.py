"""Workers, and the turns of a race."""

import math
import time

import pytest

from benchmarks.harness import ContestantError, Limit, Worker, processes, race, take_turns, workers
from tests.benchmarks.contestants import Refuses, Sleeper, Writes


@pytest.fixture(autouse=True)
def no_pause_between_turns(monkeypatch):
    monkeypatch.setattr(processes, "SETTLE", 0.0)


def test_a_worker_answers_reports_failures_and_goes_on(monkeypatch):
    with Worker("sleeper", Sleeper, environment={"BENCHMARK_TEST": "set"}) as worker:
        assert worker.call("add", 2, 3) == 5
        with pytest.raises(ContestantError, match=r"sleeper: fails raised(.|\n)*as it should"):
            worker.call("fails")
        assert worker.call("variable", "BENCHMARK_TEST") == "set"
        assert worker.call("variable", "MLX_ENABLE_TF32") == "0"
        with pytest.raises(ContestantError, match="sleeper: its process died, exit code 3"):
            worker.call("dies")


def test_a_call_that_takes_too_long_ends_the_process():
    with (
        Worker("sleeper", Sleeper) as worker,
        pytest.raises(ContestantError, match="sleeps took more than 0 s"),
    ):
        worker.call("sleeps", 60, timeout=0.2)


@pytest.mark.parametrize("eager", [False, True])
def test_a_contestant_that_cannot_be_built_says_why(eager):
    with (
        Worker("none", Refuses, eager=eager) as worker,
        pytest.raises(ContestantError, match="no such device"),
    ):
        worker.call("add", 1, 2)


def test_an_eager_worker_is_built_before_the_first_call(tmp_path):
    place = tmp_path / "built"
    with Worker("eager", Writes, place, eager=True):
        for _ in range(600):
            if place.exists():
                break
            time.sleep(0.05)
        assert place.exists()


def test_a_race_divides_by_the_steps():
    with workers(Sleeper, {"a": (1.0,), "b": (2.0,)}, cold=True) as team:
        assert race(team, steps=10, rounds=2) == {"a": [1.0, 1.0], "b": [2.0, 2.0]}


def test_each_round_has_every_contestant_once_in_an_order_that_changes():
    order = []
    take_turns(lambda: ["a", "b", "c", "d"], lambda name: order.append(name) or 1.0, rounds=6)
    found = [tuple(order[i : i + 4]) for i in range(0, 24, 4)]
    assert all(sorted(each) == ["a", "b", "c", "d"] for each in found)
    assert len(set(found)) > 1


def test_results_are_handed_out_after_each_round_and_later_rounds_do_not_change_them():
    seen = []
    take_turns(lambda: ["a"], lambda name: float(len(seen)), rounds=3, after=seen.append)
    assert seen == [{"a": [0.0]}, {"a": [0.0, 1.0]}, {"a": [0.0, 1.0, 2.0]}]


def test_a_contestant_that_fails_in_a_turn_is_no_longer_among_the_results():
    names = ["a", "b"]

    def turn(name):
        if name == "b" and len(names) == 2:
            names.remove("b")
            return None
        return 1.0

    assert take_turns(lambda: list(names), turn, rounds=2) == {"a": [1.0, 1.0]}


class Told(Limit):
    """A limit without a clock."""

    def __init__(self, *left):
        super().__init__()
        self._told = list(left)

    def left(self):
        return self._told.pop(0)


def test_no_round_begins_that_would_not_end_within_the_limit():
    made = take_turns(lambda: ["a"], lambda name: 1.0, rounds=5, limit=Told(math.inf, 0.0))
    assert made == {"a": [1.0, 1.0]}
    made = take_turns(lambda: ["a"], lambda name: 1.0, rounds=2, limit=Told(0.0))
    assert made == {"a": [1.0]}, "the first round always begins"
