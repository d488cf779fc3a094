"""`fit` in 1, 2 and 4 processes over the ring gives the same run at an equal global batch."""

import json
import re
from pathlib import Path

import pytest

from tests._parallel.launching import Launched, launched

PROGRAM = Path(__file__).parents[1] / "programs" / "together.py"
PARTING = PROGRAM.with_name("parting.py")
RUNS = ["whole", "iterable", "lazy", "mixed", "sharded", "stopping", "stop", "term"]
EVERY = 2e-6  # relative; float32 sums are made in another order


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return what each rank printed, by the number of processes and the scenario."""
    names = {1: [*RUNS, "broken"], 2: [*RUNS, "broken", "short", "errors"], 4: ["whole", "iterable", "stop"]}
    return {count: printed(count, tmp_path_factory.mktemp("runs"), names[count]) for count in names}


def printed(count, directory, names):
    outputs = [out.splitlines() for out in launched(PROGRAM, count, [directory, *names])]
    rows = [[json.loads(line) for line in lines] for lines in outputs]
    return {name: [rank[index]["made"] for rank in rows] for index, name in enumerate(names)}


def assert_same_state(found, expected):
    """Assert that all ranks have the same bits, and that they are those of one process up to rounding."""
    assert len({rank["digest"] for rank in found}) == 1
    for name in ("history", "best", "reason", "steps"):
        assert all(rank[name] == found[0][name] for rank in found)
    assert found[0]["w"] == pytest.approx(expected["w"], rel=EVERY)
    assert (found[0]["reason"], found[0]["steps"]) == (expected["reason"], expected["steps"])


def assert_same_run(found, expected):
    """Assert that the states are the same, and all rows of figures."""
    assert_same_state(found, expected)
    for own, other in zip(found[0]["history"], expected["history"], strict=True):
        assert own == pytest.approx(other, rel=EVERY)


@pytest.mark.parametrize(
    ("count", "name"),
    [(2, name) for name in RUNS if name != "term"] + [(4, name) for name in ("whole", "iterable", "stop")],
)
def test_the_run_is_that_of_one_process(results, count, name):
    assert_same_run(results[count][name], results[1][name][0])


def test_the_runs_end_for_these_reasons(results):
    reasons = {name: results[1][name][0]["reason"] for name in ("whole", "iterable", "stop", "stopping")}
    assert reasons.pop("stopping").startswith("eval_loss has not improved")
    assert reasons == {"whole": "steps", "iterable": "epochs", "stop": "enough"}
    assert results[1]["stopping"][0]["steps"] < 40


@pytest.mark.parametrize("count", [2, 4])
def test_callbacks_are_called_on_rank_0_and_those_that_ask_for_it_on_all(results, count):
    first, *others = results[count]["whole"]
    calls = [*range(1, 21), "end"]
    assert first["seen"] == first["both"] == [f"begin 0 of {count}", *calls]
    assert first["rows"] == results[1]["whole"][0]["rows"] == 6
    for rank, other in enumerate(others, start=1):
        assert (other["seen"], other["both"]) == ([], [f"begin {rank} of {count}", *calls])
    assert {rank["samples"] for rank in results[count]["whole"]} == {20 * 16}


def test_a_signal_to_one_rank_ends_all_after_the_same_step_and_the_run_goes_on(results):
    whole = results[1]["term"][0]["second"]
    for rank in results[2]["term"]:
        assert (rank["first"]["reason"], rank["first"]["steps"]) == ("signal", 6)
    assert_same_run([rank["second"] for rank in results[2]["term"]], whole)


def test_the_end_of_the_source_of_one_rank_ends_all(results):
    for rank in results[2]["short"]:
        assert (rank["reason"], rank["steps"]) == ("the source of rank 1 ended after 4 steps", 4)
        assert rank["best"][0] == 4  # the evaluation after the last step


def test_a_value_that_is_not_finite_ends_all_and_is_not_saved(results):
    for rank in results[2]["broken"]:
        for name in ("reason", "steps", "saved"):
            assert rank[name] == results[1]["broken"][0][name]
        assert rank["saved"] == [1, 2]


def test_an_error_of_one_rank_is_raised_on_all(results):
    first, second = results[2]["errors"]
    for own, other, name, kind, text, step in [
        (second, first, "source", "ValueError", "a broken file", 5),
        (first, second, "callback", "OSError", "no space", 3),
        (second, first, "shape", "ValueError", "[matmul]", 5),
        (first, second, "end", "OSError", "no space", 2),
        (first, second, "bundles", "ValueError", "nonfinite: bundles must be left out", 0),
    ]:
        rank = 1 if own is second else 0
        assert own[name][0] == kind
        assert own[name][1].startswith(text)
        assert other[name][0] == "RankError"
        assert other[name][1].startswith(f"fit: rank {rank} failed: {kind}: {text}")
        assert own[name][2] == other[name][2] == step
        if name == "end":
            assert "no checkpointer was given" in own[name][3]
        elif step:
            assert f"the state after step {step} is saved in" in own[name][3]
    assert first["afterwards"] == second["afterwards"] == 2
    assert first["warned"] == second["warned"] == ["TrainsAloneWarning"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("steps", "fit: steps must be equal on all ranks, got 2 on rank 0 and 4 on rank 1"),
        ("state", "fit: step must be equal on all ranks, got other values on rank 1 than on rank 0"),
        ("unmerged", "fit: eval_loss must be the same on all ranks, got"),
        ("fewer", "fit: all ranks must do the same, got rank 1 at the end of evaluation eval of step 2"),
        ("parted", "fit: the ranks have left an earlier run at different places"),
        ("elsewhere", ".*all ranks"),
        ("unshared", ".*must be a directory that all ranks share"),
        ("alone", "fit: checkpointer must save on the 1 ranks that train, got one of 2"),
    ],
)
def test_ranks_that_differ_are_refused_on_all(results, name, expected):
    for rank in results[2]["errors"]:
        assert re.match(expected, rank[name][1])


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    whole = printed(1, tmp_path / "whole", ["13"])["13"][0]
    for count, steps in ((2, "4"), (1, "9"), (4, "13")):
        found = printed(count, tmp_path / "parts", [steps])[steps]
    for index, expected in enumerate(whole):
        assert_same_state([rank[index] for rank in found], expected)


def test_ranks_that_wait_for_the_device_end_if_another_fails_or_dies():
    """Rank 1 leaves an evaluation while the others wait for its part of a sum."""
    runs = {how: Launched(PARTING, 3, [how]) for how in ("raise", "kill")}
    found = {how: run.wait(60) for how, run in runs.items()}
    for rank in (0, 2):
        status, _, err = found["raise"][rank]
        assert (status, err.splitlines()[-1]) == (
            75,
            "fit: rank 1 failed: ValueError: a bad row; this process ends",
        )
        status, _, err = found["kill"][rank]
        assert status in (1, 75)  # the ring reports the loss, or hangs
        assert "fit: rank 1 ended before the others" in err
    assert found["raise"][1][0] == 1
    assert "ValueError: a bad row" in found["raise"][1][2]
