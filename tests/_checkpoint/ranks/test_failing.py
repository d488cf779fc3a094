"""Saves of several ranks in which one goes wrong: an error on all of them, and never half a checkpoint."""

import json
import warnings
from pathlib import Path

import pytest

from purestep import checkpoint
from tests._parallel.launching import Launched, launched

PROGRAM = Path(__file__).parents[2] / "_parallel" / "programs" / "failing.py"
COUNT = 3


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return what each of three ranks printed."""
    names = ["arguments", "disks", "directories", "damage", "policies"]
    outs = launched(PROGRAM, COUNT, [tmp_path_factory.mktemp("runs"), *names])
    return [json.loads(out.splitlines()[-1]) for out in outs]


def test_print(results):
    for rank, result in enumerate(results):
        print(rank, json.dumps(result, indent=1))
    assert 0


def test_killed(tmp_path):
    for status, out, err in Launched(PROGRAM, 3, [tmp_path, "killed"]).wait(60):
        print(status, out, err[-1000:])
    print([e.name for e in tmp_path.iterdir()])
    assert 0
