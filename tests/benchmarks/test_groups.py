"""Groups of processes: what each prints, how each ends, and the end of those that are left."""

import sys
import time
from pathlib import Path

import pytest

from benchmarks import harness, ranks

PROGRAM = """
import json, os, sys, time
task = json.loads(sys.argv[1])
rank = int(os.environ["RANK"])
print(rank, os.environ["WORLD_SIZE"], "MLX_HOSTFILE" in os.environ)
if rank == task.get("ill"):
    print(json.dumps({"moment": time.monotonic()}), flush=True)
    time.sleep(100)
print("rank 1 is gone", file=sys.stderr)
sys.exit(task["status"])
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the program above in a group of two."""
    (tmp_path / "program_of_a_group.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda task, count=2, **waits: harness.run_group(
        "program_of_a_group", task, count, cuda=False, **({"seconds": 20} | waits)
    )


def test_each_process_has_its_rank_and_all_have_a_ring(run):
    found = run({"status": 3})
    assert [each.output.strip() for each in found] == ["0 2 True", "1 2 True"]
    assert [each.status for each in found] == [3, 3]
    assert run({"status": 0}, 1)[0].output.strip() == "0 1 False"


def test_a_process_that_is_left_alone_is_killed_and_the_others_are_judged(run):
    begin = time.monotonic()
    found = run({"status": 75, "ill": 1}, patience=0.5)
    assert time.monotonic() - begin < 15
    assert [each.status for each in found] == [75, None]
    judged = ranks.stopped(found, 1)
    assert judged["named"]
    assert -5 < judged["seconds"] < 5
    with pytest.raises(harness.ContestantError, match="rank 1 had no more time"):
        ranks.printed([found[0]._replace(status=0), found[1]])


def test_a_limit_ends_all(run):
    found = run({"status": 0, "ill": 0}, seconds=1.0 if sys.platform == "linux" else 3.0)
    assert found[0].status is None
