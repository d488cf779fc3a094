"""Composed, masked and unusually fed steps of 3 processes equal those of one process on the whole batch."""

import json
from pathlib import Path

import pytest

from tests._parallel.launching import launched

PROGRAM = Path(__file__).parent / "programs" / "composed.py"
NAMES = [
    "few",
    "few, cut",
    "few, sharded",
    "none",
    "nan on one rank",
    "nan on one rank, sharded",
    "muon",
    "muon, packed",
    "grouped",
    "grouped, sharded",
    "fewer elements than ranks",
    "fewer elements than ranks, sharded",
    "empty array",
    "empty array, sharded",
    "averaged",
    "dropout",
    "scanned",
    "scanned, compiled",
    "populated",
    "stateful",
    "measured, sharded",
    "uneven, checked",
    "uneven",
    "uneven, compiled",
]


@pytest.fixture(scope="module")
def results():
    """Return what three ranks printed."""
    return [json.loads(out.splitlines()[-1]) for out in launched(PROGRAM, 3)]


@pytest.mark.parametrize("name", NAMES)
def test_three_ranks_give_the_step_of_the_whole_batch(results, name):
    found = [result[name] for result in results]
    assert len({each["digest"] for each in found}) == 1, "the ranks differ"
    for each in found:
        assert each["names"]
        assert each["state"] < 1e-6
        assert each["metrics"] < 1e-6
