"""The DPO demo: margins separate, and the pairs differ only in their completions."""

import json

import pytest

from purestep.demos import dpo as demo
from purestep.demos.models import sorting
from tests.demos.runs import check_files, check_resumed, options, stop


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A model and batches small enough to run quickly without compilation."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"TRAIN": 64, "TEST": 16, "REFERENCE_BATCH": 16, "PAIRS": 16}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(demo, "REFERENCE_STEPS", 10)
    monkeypatch.setattr(demo, "RATE", 2e-3)
    monkeypatch.setattr(demo, "Decoder", lambda: sorting.Decoder(width=16, layers=1, heads=2))


def test_margins_separate_and_the_files_and_figures_are_there(tmp_path, capsys):
    assert demo.run(options(out="run", steps=20)) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["reward_accuracy"] > 0.9
    assert result["reward_margin"] > 0.1
    before = result["logp_chosen_before"] - result["logp_rejected_before"]
    after = result["logp_chosen_after"] - result["logp_rejected_after"]
    assert after - before == pytest.approx(result["reward_margin"] / demo.BETA, rel=1e-3)
    check_files(tmp_path / "run", "reference", "dpo")


@pytest.mark.parametrize("at", [4, 12])
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_interrupted(capsys, at):
    check_resumed(demo.run, capsys, at, stop, ("reference", "dpo"))


def test_the_policy_begins_as_its_reference(monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(demo.curves, "draw", lambda path, panels, title: drawn.extend(panels))
    assert demo.run(options(out="run", steps=1)) == 0
    begins = {curve.figure: curve.history[0][curve.figure] for curve in drawn[0].curves}
    assert drawn[0].curves[0].history[0]["step"] == 0
    assert list(begins.values()) == pytest.approx([0, 0, 0], abs=1e-4)


def test_pairs_are_one_prompt_sorted_both_ways():
    chosen, rejected = demo.pairs([[7, 3, 3, 1, sorting.EQUALS], [0, 9, 5, 2, sorting.EQUALS]])
    assert chosen[:, :5].tolist() == rejected[:, :5].tolist()
    assert chosen[:, 5:].tolist() == [[1, 3, 3, 7, sorting.STOP], [0, 2, 5, 9, sorting.STOP]]
    assert rejected[:, 5:].tolist() == [[7, 3, 3, 1, sorting.STOP], [9, 5, 2, 0, sorting.STOP]]
