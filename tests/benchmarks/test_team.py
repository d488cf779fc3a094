"""Contestants that are absent, fail or take too long while the others go on."""

import pytest

from benchmarks.harness import Contestant, ContestantError, Limit, StoppedError, Team, processes
from benchmarks.harness import team as teams
from tests.benchmarks.contestants import Refuses, Sleeper


@pytest.fixture(autouse=True)
def no_pause_between_turns(monkeypatch):
    monkeypatch.setattr(processes, "SETTLE", 0.0)


def test_who_is_not_installed_or_fails_is_left_out_with_the_reason():
    who = {
        "a": Contestant(Sleeper, (1.0,)),
        "absent": Contestant(Sleeper, (), ("no_such_package",)),
        "broken": Contestant(Refuses, (), alone=True),
    }
    with Team(who) as team:
        assert team.together("add", 1, 2) == {"a": 3}
        assert team.race(4, 2) == {"a": [1.0, 1.0]}
        assert team.failures == {
            "absent": "not installed: no_such_package",
            "broken": "RuntimeError: no such device",
        }


def test_only_the_named_ones_compete_and_a_wrong_name_is_refused_before_any_work():
    with Team({"a": Contestant(Sleeper, ()), "b": Contestant(Refuses, ())}, ["a"]) as team:
        assert team.names == ["a"]
    with pytest.raises(ContestantError, match="unknown: c. Known: a"):
        Team({"a": Contestant(Sleeper, ())}, ["c"])


def test_who_is_not_ready_within_its_share_of_the_limit_is_left_out(monkeypatch):
    monkeypatch.setattr(teams, "_LEAST", 0.2)
    with Team({"a": Contestant(Sleeper, ())}, limit=Limit(0.4)) as team:
        assert team.together("sleeps", 60) == {}
        assert team.failures["a"].startswith("sleeps took more than")


def test_a_stop_while_all_prepare_ends_their_processes_and_does_not_wait_for_them():
    who = {"a": Contestant(Sleeper, ()), "b": Contestant(Sleeper, ())}
    team = Team(who)
    workers = [worker._process for worker in team._workers.values()]
    with pytest.raises(StoppedError), Limit(1.5).enforced(), team:
        team.together("sleeps", 60)
    assert not any(worker.is_alive() for worker in workers)
    assert team.failures == {}, "no contestant failed"
