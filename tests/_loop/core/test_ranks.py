"""Rounds of several ranks, each in a thread of its own: results, errors, places, ranks that are gone."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

import purestep as ps
from purestep._loop.core import lockstep, ranks


class Member:
    """A group without MLX."""

    def __init__(self, rank, size):
        self._rank, self._size = rank, size

    def rank(self):
        return self._rank

    def size(self):
        return self._size


@pytest.fixture
def together(monkeypatch):
    """Return a function that calls `play(group)` on each of several ranks, and returns results or errors."""

    def run(size, play):
        told, barrier = [], threading.Barrier(size)

        def from_rank_0(group, own):
            if group.rank() == 0:
                told.append(own)
            barrier.wait(10)
            return told[0]

        monkeypatch.setattr(lockstep, "_from_rank_0", from_rank_0)
        monkeypatch.setattr(lockstep, "host_of_rank_0", lambda: "127.0.0.1")

        def one(rank):
            member: Any = Member(rank, size)
            group = ranks.Group("fit", member)
            try:
                return play(group)
            except Exception as error:
                return error
            finally:
                group.close()

        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(one, range(size)))

    return run


def test_every_rank_receives_the_results_of_all(together):
    def play(group):
        first = group.gathered("a", lambda: {"x": group.rank * 1.5, "nan": None})
        return [each["x"] for each in first], group.gathered("b", lambda: group.rank == 0)

    assert together(3, play) == [([0.0, 1.5, 3.0], [True, False, False])] * 3


def test_an_error_is_raised_on_all_and_the_ranks_go_on(together):
    def play(group):
        def act():
            if group.rank == 1:
                raise ValueError("no rows")

        try:
            group.gathered("a", act)
        except Exception as error:
            group.failed(error)  # the others know it
            return [ranks.said(error), group.lost, group.gathered("b", lambda: group.rank)]

    found = together(3, play)
    assert [each[1:] for each in found] == [[False, [0, 1, 2]]] * 3
    told = "RankError: fit: rank 1 failed: ValueError: no rows"
    assert [each[0] for each in found] == [told, "ValueError: no rows", told]


def test_a_rank_that_fails_between_rounds_ends_the_others_at_their_next_one(together):
    def play(group):
        if group.rank == 1:
            error = OSError("no space")
            group.failed(error)
            return group.lost
        return group.gathered("a", lambda: None)

    first, second = together(2, play)
    assert isinstance(first, ranks.RankError)
    assert "rank 1 failed: OSError: no space" in str(first)
    assert second is True


def test_ranks_at_other_places_are_refused(together):
    found = together(2, lambda group: group.gathered(f"step {3 + group.rank}", lambda: None))
    expected = "fit: all ranks must do the same, got rank 1 at step 4 and rank 0 at step 3"
    assert [str(each) for each in found] == [expected] * 2


@pytest.mark.parametrize("gone", [0, 1])
def test_a_rank_that_is_gone_is_named(together, gone):
    def play(group):
        if group.rank == gone:
            return
        group.gathered("a", lambda: None)

    found = together(3, play)
    for rank, each in enumerate(found):
        if rank != gone:
            assert isinstance(each, lockstep.LostError)
            assert str(each) == f"fit: rank {gone} ended before the others"


def test_a_signal_is_known_to_all_after_the_same_round(together):
    def play(group):
        asked: Any = SimpleNamespace(received=group.rank == 1)
        group.asked = asked
        before = group.signalled
        group.gathered("a", lambda: None)
        return before, group.signalled

    assert together(2, play) == [(False, True)] * 2


def test_a_step_of_one_process_has_no_group():
    step = ps.compiled(ps.train_step(lambda params, batch, rng: params["w"].sum(), ps.identity()))
    assert ranks.group_of_step(step) is None
    assert type(ranks.ranks_of("fit", step, None)) is ranks.Ranks
    with pytest.raises(TypeError, match="fit: group must be a group of mx.distributed.init"):
        ps.fit(step, None, [], group=2)  # type: ignore[arg-type]
