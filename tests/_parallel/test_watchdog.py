"""One rank dies, leaves or hangs; the others end with its name, soon."""

import os
import time
from pathlib import Path

import pytest

import purestep as ps
from purestep._parallel.verdicts import Seen, verdict
from tests._parallel.launching import Launched, launched

PROGRAM = Path(__file__).parent / "programs" / "watched.py"
TIMEOUT = 1.0
FAULTS = [
    ("kill", 1, "rank 1 ended before the others"),
    ("kill", 0, "rank 0 ended before the others"),
    ("exit", 1, "rank 1 ended before the others"),
    ("lost", 1, "rank 1 has not been heard from for"),
    ("lost", 0, "rank 0 has not been heard from for"),
    ("leave", 1, "rank 1 failed: SystemExit: 0"),
    ("stop", 1, "rank 1 has not been heard from for"),
    ("stop", 0, "rank 0 has not been heard from for"),
    ("hang", 1, "rank 1 hangs after 3 steps, the others are at 4"),
    ("hang", 0, "rank 0 hangs after 3 steps, the others are at 4"),
    ("early", 1, "rank 1 left the run after 3 steps, the others are at 4"),
    ("error", 1, "rank 1 failed: ValueError: no more rows"),
    ("absent", 1, "a rank did not reach watchdog()"),
    ("gone", 1, "a rank ended before it reached watchdog(): [ring] connection to a peer was lost"),
]


def ended(launched_group, ill, count=2):
    """Return the statuses and errors of the ranks that are well, and the seconds until all have ended."""
    well = [process for rank, process in enumerate(launched_group.processes) if rank != ill]
    start = time.monotonic()
    try:
        found = [(process.communicate(timeout=20)[1], process.returncode) for process in well]
        return found, time.monotonic() - start
    finally:
        launched_group.close()


@pytest.mark.parametrize(("fault", "ill", "reason"), FAULTS)
def test_the_others_end_with_the_name_of_the_rank(fault, ill, reason):
    found, seconds = ended(Launched(PROGRAM, 2, [fault, ill, TIMEOUT]), ill)
    for errors, status in found:
        assert status == 75
        assert reason in errors.split("watchdog: ")[1]
    assert seconds < 15  # start-up included


def test_every_rank_ends_in_larger_groups():
    found, _ = ended(Launched(PROGRAM, 3, ["stop", 2, TIMEOUT]), 2)
    assert [status for _, status in found] == [75, 75]
    assert all("watchdog: rank 2 has not been heard from for" in errors for errors, _ in found)


@pytest.mark.skipif("PURESTEP_FIFTY" not in os.environ, reason="takes 5 minutes")
def test_a_hung_rank_ends_every_other_one_in_50_of_50():
    timeout, seconds = 2.0, []
    for index in range(50):
        fault, ill = ("hang", "stop")[index % 2], index % 3
        group = Launched(PROGRAM, 3, [fault, ill, timeout])
        stuck = float(group.processes[ill].stdout.readline())
        found, _ = ended(group, ill)
        seconds.append(time.time() - stuck)
        assert [status for _, status in found] == [75, 75]
        assert all(f"rank {ill} ha" in errors for errors, _ in found)
    print(f"median {sorted(seconds)[25]:.1f} s, at most {max(seconds):.1f} s")
    assert max(seconds) < timeout + 5


def test_a_sound_group_finishes():
    assert [out.split() for out in launched(PROGRAM, 2, ["none", 0, TIMEOUT])] == [["finished"]] * 2


def test_another_script_is_refused(tmp_path):
    other = tmp_path / "watched.py"
    other.write_text(PROGRAM.read_text() + "# changed\n")
    found, _ = ended(Launched([PROGRAM, other], 2, ["none", 0, TIMEOUT]), None)
    for errors, status in found:
        assert status == 75
        assert "watchdog: rank 1 must run the same program as rank 0, got script watched.py" in errors


def test_a_rank_that_is_done_does_not_count_as_silent():
    assert verdict([Seen(0, 10.0), Seen(1, 1.0, done=True)], 10.0, 5.0) is None


def test_without_beats_only_silence_counts():
    assert verdict([Seen(0, 10.0), Seen(1, 9.0)], 10.0, 5.0) is None


def test_a_silent_rank_is_named_when_another_has_lost_its_connection():
    ranks = [Seen(0, 10.0, beats=3, advanced=1.0), Seen(1, 1.0, beats=3, advanced=1.0)]
    assert verdict(ranks, 10.0, 5.0, failing=True) == "rank 1 has not been heard from for 9 s"
    assert verdict([ranks[0], ranks[0]], 10.0, 5.0, failing=True) is None


def test_a_single_process_is_not_watched():
    with ps.parallel.watchdog(timeout=0.1) as dog:
        dog.beat()


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": "1"}, {"address": 5}])
def test_refuses(options):
    with pytest.raises((TypeError, ValueError), match=f"watchdog: {next(iter(options))} must be"):
        ps.parallel.watchdog(**options)
