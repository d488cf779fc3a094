"""Saves of several ranks in which one goes wrong: an error on all of them, and never half a checkpoint."""

import json
from pathlib import Path

import mlx.core as mx
import pytest

from purestep import checkpoint
from purestep._checkpoint.ranks import receipts, shared, together
from tests._parallel.launching import Launched, launched

PROGRAM = Path(__file__).parents[2] / "_parallel" / "programs" / "failing.py"
COUNT = 3


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return what each of three ranks printed."""
    names = ["arguments", "disks", "directories", "damage", "policies", "unread", "calls", "late"]
    outs = launched(PROGRAM, COUNT, [tmp_path_factory.mktemp("runs"), *names])
    return [json.loads(out.splitlines()[-1]) for out in outs]


def of(results, name, place):
    """Return what each rank got, without the rank that an error of another one names at its end."""
    found = [result[name][place] for result in results]
    return [each.partition(" (on rank ")[0] if isinstance(each, str) else each for each in found]


def agreed(results, name, place):
    """Return what all ranks got alike."""
    found = of(results, name, place)
    assert found == [found[0]] * COUNT
    return found[0]


def test_wrong_arguments_on_one_rank_are_refused_on_all(results):
    assert "metadata['x'] must be plain" in agreed(results, "arguments", 0)
    assert results[0]["arguments"][0].endswith("(on rank 1)")
    assert "step must be equal on all ranks, got 0 on rank 0 and 1 on rank 1" in agreed(
        results, "arguments", 1
    )
    shapes = "paths, shapes or dtypes"
    for place, rank, other in ((2, 2, "vectors or parts"), (3, 2, shapes), (4, 1, shapes)):
        text = agreed(results, "arguments", place)
        assert f"state must be built alike on all ranks, got other {other} on rank {rank} than on" in text
    assert agreed(results, "arguments", 5).startswith("LockedError: Checkpointer.save: ")
    assert agreed(results, "arguments", 6) == []


def test_a_rank_that_cannot_write_leaves_no_checkpoint_and_the_earlier_ones(results):
    full, other, after, broken, same, listed, deleted, missing, once, kept = (
        of(results, "disks", place) for place in range(10)
    )
    for text in full:
        assert text.startswith("OSError: [Errno 28] Checkpointer: step 2 was not saved: ")
        assert text.endswith("No space left on device: part; earlier checkpoints are intact")
    assert "rank 2: No space" in full[0]
    assert all(text.startswith("RuntimeError: Checkpointer: step 3 was not saved: ") for text in other)
    assert after == same == [["step_00000001", "step_00000004"]] * COUNT
    assert all("OSError: [Errno 5] Checkpointer: step 5 was not saved" in text for text in broken)
    assert listed == [[1, 4]] * COUNT
    assert deleted == [["step_00000004"]] * COUNT
    assert all("has no step 1; it has: 4" in text for text in missing)
    assert once == [1] * COUNT
    assert kept == [["step_00000006"]] * COUNT


def test_a_directory_that_ranks_do_not_share_is_refused(results):
    for rank, found in enumerate(results):
        parts, whole, newest, given, nothing, missing = found["directories"]
        for text in (parts, whole):
            assert "must be a directory that all ranks share, but this rank does not see what rank 0" in text
            assert text.endswith("(on rank 1)") == (rank == 0)
        for text in (newest, given):
            assert "got step_00000006 on rank 0 and no checkpoint on rank 1" in text
        assert nothing == "FileNotFoundError: Checkpointer.restore: there is no checkpoint in /nothing"
        assert missing == "FileNotFoundError: Checkpointer.restore: /d has no step 1; it has: 6"


def test_a_part_that_one_rank_finds_damaged_is_passed_over_by_all(results):
    found = [agreed(results, "damage", place) for place in range(5)]
    assert found == [[1, True, 1], True, "CorruptError", "ValueError", "FileNotFoundError"]


def test_rank_0_decides_when_to_save_and_a_signal_to_any_rank_counts(results):
    found = [agreed(results, "policies", place) for place in range(5)]
    assert found == [[False, True], [False, 0], [False, True], True, {"rank": 0}]


def test_states_that_one_rank_or_none_has_evaluated_are_saved_and_restored(results):
    """The loss falls and rises again: the policy saves the best, and each fourth step."""
    found = [agreed(results, "unread", place) for place in range(4)]
    assert found == [[[False, True], True], False] * 2


def test_ranks_that_call_different_methods_or_have_other_options_are_refused(results):
    for rank, found in enumerate(results):
        methods, step, vectors, written, background, limit, left = found["calls"]
        assert methods == (
            f"RuntimeError: Checkpointer.{'wait' if rank else 'save'}: all ranks must call the same methods "
            "in the same order, got Checkpointer.save on rank 0 and Checkpointer.wait on rank 1"
        )
        assert "step must be equal on all ranks, got 1 on rank 0 and 2 on rank 1" in step
        assert "must be built alike on all ranks, got other vectors or parts on rank 1" in vectors
        assert "Checkpointer.save: /k cannot be written by rank 2 (Permission denied)" in written
        assert left == ["step_00000001", "step_00000003"]
        assert "asynchronous of Checkpointer must be equal on all ranks, got True on rank 0" in background
        assert "shard_bytes of Checkpointer must be equal on all ranks, got 100 on rank 0" in limit


def test_ranks_look_again_if_they_see_other_checkpoints(results):
    assert [agreed(results, "late", place) for place in range(2)] == [2, 1]


def test_a_rank_that_is_killed_while_it_writes_leaves_no_checkpoint(tmp_path):
    found = Launched(PROGRAM, COUNT, [tmp_path, "killed"]).wait(60)
    assert [status for status, *_ in found] == [75, -9, 75]
    assert all(
        "watchdog: rank 1 ended before the others" in errors for status, _, errors in found if status > 0
    )
    with checkpoint.Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.verify() == {1: []}
        checkpointer.save({"w": mx.ones(3)}, step=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "step_00000001", "step_00000002"]


def test_rank_0_sees_a_rank_that_ends_or_writes_nothing(tmp_path, monkeypatch):
    presence = receipts.Presence("save", tmp_path, 1)
    monkeypatch.setattr(receipts, "_PATIENCE", 0.05)
    with pytest.raises(OSError, match="rank 1 has written nothing for 0 s"):
        receipts.collect(tmp_path, [1])
    presence.release()
    with pytest.raises(OSError, match="rank 1: it ended before it had written its part"):
        receipts.collect(tmp_path, [1])


def test_a_directory_that_a_rank_may_not_read_is_refused_at_once(tmp_path):
    def seen():
        raise PermissionError(13, "Permission denied")

    with pytest.raises(PermissionError, match=r"save: .* but this rank may not read .*\(Permission denied\)"):
        shared.await_visible("save", tmp_path, seen)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("no step"), FileNotFoundError),
        (OSError(28, "full", "path"), OSError),
        (checkpoint.CorruptError("cut"), checkpoint.CorruptError),
        (ZeroDivisionError("zero"), ZeroDivisionError),
        (json.JSONDecodeError("bad", "", 0), RuntimeError),
    ],
)
def test_errors_of_another_rank_keep_their_class(error, kind):
    found = together._rebuilt(together._described(error), 2)
    assert type(found) is kind
    assert str(found).endswith("(on rank 2)")
    assert isinstance(found, type(error)) or kind is RuntimeError
