"""Steps of 2 and 4 processes equal those of one process on the whole batch."""

import json
from pathlib import Path

import mlx.core as mx
import pytest

import purestep as ps
from purestep.testing import same_bits
from tests._parallel.launching import launched

PROGRAM = Path(__file__).parent / "programs" / "scenarios.py"
LOOSE = {"bfloat16": 0.05, "half": 0.05, "batch norm": 1e-4}
NAMES = [
    "ragged",
    "compiled",
    "microbatches",
    "scalar",
    "sum of means",
    "sum of means, cut",
    "accumulated",
    "averaged",
    "noise",
    "dropout",
    "packed",
    "measured",
    "bfloat16",
    "half",
    "sharded",
    "sharded, compiled",
    "sharded tree",
    "sharded, one group",
    "sharded, averaged",
    "sharded, skipping",
    "evaluated",
    "batch norm",
]


def printed(count, *names):
    """Return what each of `count` ranks printed."""
    return [json.loads(out.splitlines()[-1]) for out in launched(PROGRAM, count, names)]


@pytest.fixture(scope="module")
def results():
    """Return what two ranks printed."""
    return printed(2)


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_give_the_step_of_the_whole_batch(results, name):
    compare(results, name)


def test_four_ranks_give_the_step_of_the_whole_batch():
    """They share two cores, so there are few."""
    results = printed(4, "ragged", "sum of means, cut")
    for name in results[0]:
        compare(results, name)


def compare(results, name):
    found = [result[name] for result in results]
    assert len({each["digest"] for each in found}) == 1, "the ranks differ"
    for each in found:
        assert each["names"]
        assert each["state"] < LOOSE.get(name, 2e-6)
        assert each["metrics"] < LOOSE.get(name, 2e-6)


def test_a_rank_of_sharded_holds_its_part_of_the_state(results):
    for each in results:
        for name in each:
            if name.startswith("sharded"):
                assert each[name]["same"]
        # Padding and counters are the rest: there are 18 parameters.
        assert each["sharded, one group"]["size"] < 0.58


def test_refusals_name_what_differs(results):
    for result in results:
        values, shapes, missing, order, muon, lars, seeds, compiled, contrastive = result["refusals"]
        assert values.startswith("check: b.c must be equal on all ranks, got other values on rank")
        assert "b float32 (2,) on rank 0 and b float32 (3,) on rank 1" in shapes
        assert "nothing on rank 0 and b float32 (2,) on rank 1" in missing
        assert "in the same order on all ranks" in order
        assert muon == lars
        assert muon.startswith("sharded: transform must treat all elements alike")
        assert seeds.startswith("data_parallel: rng must be equal on all ranks")
        assert compiled.startswith("data_parallel: params.b must be equal on all ranks")
        assert contrastive.startswith("ntxent: ")


def test_a_group_of_one_is_train_step():
    def loss_fn(params, batch, rng):
        return mx.square(params["w"] - batch["x"]).mean()

    transform = ps.optimizers.adamw(0.1)
    state = ps.TrainState.create({"w": mx.array(1.0)}, transform)
    batch = {"x": mx.array([1.0, 3.0])}
    found = ps.data_parallel(loss_fn, transform)(state, batch)
    assert same_bits(found, ps.train_step(loss_fn, transform)(state, batch))


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"group": 3}, "group must be"), ({"reduce_dtype": mx.int32}, "reduce_dtype must be")],
)
def test_refuses(options, expected):
    with pytest.raises((TypeError, ValueError), match=f"data_parallel: {expected}"):
        ps.data_parallel(lambda params, batch, rng: mx.array(0.0), ps.identity(), **options)
