"""`sharded` equals `data_parallel` for every transform of the catalogue, or refuses it in words."""

import json
from pathlib import Path

import pytest

from tests._parallel.launching import launched
from tests.catalogue import CATALOGUE, READS_ALL_LEAVES, READS_ITS_LEAF

PROGRAM = Path(__file__).parent / "programs" / "laws.py"
# These depend on shapes or paths alone, or on the norm of all leaves.
BY_SHAPE = {
    "add_decayed_weights, masked",
    "masked",
    "masked, by path and leaf",
    "freeze",
    "partition",
    "partition, by pattern",
    "scale_by_width",
    "mup",
    "step_on_sphere",
    "scale_by_dog, first by learning rate",
}
# These keep or draw something for each array, or hand whole trees to a function.
BY_ARRAY = {"zero_nans", "flatten", "snapshot", "monitor", "add_noise", "noisy_sgd", "round_stochastically"}
REFUSED = (READS_ITS_LEAF - BY_SHAPE) | BY_ARRAY
SUMMED = READS_ALL_LEAVES | {"scale_by_dog, first by learning rate"}  # in another order than in one process


@pytest.fixture(scope="module")
def results():
    """Return what two ranks printed."""
    return [json.loads(out.splitlines()[-1]) for out in launched(PROGRAM, 2)]


@pytest.mark.parametrize("name", CATALOGUE)
def test_sharded_equals_data_parallel_or_refuses(results, name):
    for result in results:
        found = result[name]
        if name in REFUSED:
            assert found["refused"].startswith("sharded: transform must treat all elements alike")
            continue
        assert found["difference"] < 1e-6
        assert found["equal"] or name in SUMMED
