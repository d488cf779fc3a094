"""One rank builds or calls its step in another way; every rank receives an error that says how."""

import json
from pathlib import Path

import pytest

from tests._parallel.launching import launched

PROGRAM = Path(__file__).parent / "programs" / "hostile.py"
STEP = "data_parallel: the step must be built alike on all ranks, got "
ERRORS = {
    "another metric": f"{STEP}the metric 'few', of 2 numbers on rank 0 and the metric 'other', of 2 numbers",
    "one more metric": f"{STEP}nothing on rank 0 and the metric 'more', of 2 numbers on rank 1",
    "no metric": f"{STEP}the metric 'first', of 2 numbers on rank 0 and the metric 'few', of 2",
    "a sum of means": f"{STEP}the loss, a mean on rank 0 and the loss, a sum of 3 means on rank 1",
    "more means": "got the loss, a sum of 3 means on rank 0 and the loss, a sum of 4 means on rank 1",
    "microbatches": f"{STEP}microbatches=1 on rank 0 and microbatches=2 on rank 1",
    "reduce_dtype": "float32 on rank 0 and reduce_dtype=mlx.core.bfloat16 on rank 1",
    "measure": f"{STEP}nothing on rank 0 and the measurement 'grad_norms' every 1 steps on rank 1",
    "sharded": "the state must be built alike on all ranks, got opt_state",
    "step number": "step must be equal on all ranks, got other values on rank 1 than on rank 0",
    "dtype": "got params.b float32 (3,) on rank 0 and params.b bfloat16 (3,) on rank 1",
    "scanned": "data_parallel: step must be equal on all ranks",
    "whole state": "sharded: state.opt_state must hold the part of this rank, got a whole one; create",
    "state in parts": "data_parallel: state.opt_state must be whole, got a part from sharded; use",
    "differentiated": "data_parallel: a step of several processes cannot be differentiated",
    "differentiated, sharded": "a step of several processes cannot be differentiated",
    "exported": "export: step must be that of a single process, got one of several; export train_step",
    "merged": "merged: the results must be built alike on all ranks, got 'few' of 2 numbers on rank 0 and",
    "merged, more": "merged: the results must be built alike on all ranks, got nothing on rank 0 and 'more'",
}


@pytest.fixture(scope="module")
def results():
    """Return what two ranks printed."""
    return [json.loads(out.splitlines()[-1]) for out in launched(PROGRAM, 2)]


@pytest.mark.parametrize(("fault", "expected"), ERRORS.items())
def test_every_rank_is_told_the_difference(results, fault, expected):
    for result in results:
        assert expected in result[fault]
