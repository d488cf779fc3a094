"""The multi-token demo: hints, equal starts of a pair, the summary and the files of a run."""

import json
import math

import mlx.core as mx
import pytest

import purestep as ps
from purestep.demos import mtp as demo
from tests._loop.workload import assert_same
from tests.demos.runs import check_files, check_resumed, options, rows, state, stop


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A model small enough to run quickly without compilation."""
    monkeypatch.setattr(demo, "PAIRS", 2)
    monkeypatch.setattr(demo, "BATCH_SIZE", 8)
    monkeypatch.setattr(demo, "MEASURED", 16)
    monkeypatch.setattr(demo, "WIDTH", 12)
    monkeypatch.setattr(demo, "HEADS", 2)


PHASES = ["alone-1", "ahead-1", "alone-2", "ahead-2"]


def test_the_sums_are_right_and_the_hints_mostly_mislead():
    count, right = 4000, 0
    batch = demo.Hints(count, seed=0).at(7)
    for inputs, targets in zip(batch["inputs"].tolist(), batch["targets"].tolist(), strict=True):
        a, b, equals, hint = inputs
        total = (a + b) % 7
        assert 0 <= min(a, b) <= max(a, b) < 7
        assert equals == 7
        assert 8 <= hint < 15
        assert targets == [-100, -100, hint, 15 + total]
        right += hint - 8 == total
    share = demo.TRUTH + (1 - demo.TRUTH) / 7
    assert abs(right / count - share) < 4 * math.sqrt(share * (1 - share) / count)


def test_the_least_loss_is_the_entropy_of_a_hint():
    chances = [0.15 + 0.85 / 7] + 6 * [0.85 / 7]
    assert sum(chances) == pytest.approx(1)
    assert demo.least_hint_loss() == pytest.approx(-sum(p * math.log(p) for p in chances))


def test_a_source_is_a_function_of_step_and_seed():
    tokens = [
        demo.Hints(4, seed).at(step)["inputs"].tolist() for seed, step in ((0, 1), (0, 1), (0, 2), (1, 1))
    ]
    assert tokens[0] == tokens[1]
    assert tokens[0] not in tokens[2:]
    assert mx.array(tokens).dtype == mx.int32


def test_the_summary_counts_lower_losses_alone_as_won():
    def ended(*losses):
        histories = []
        for loss in losses:
            histories.append(ps.callbacks.History())
            figures = {f"validation_{name}": 0.0 for name in demo.FIGURES} | {"validation_loss": loss}
            histories[-1].evaluated(0, dict.fromkeys(figures, 9.0))
            histories[-1].evaluated(3, figures)
        return histories

    found = demo.summary({"alone": ended(1.0, 2.0, 3.0), "ahead": ended(0.5, 2.0, 3.5)})
    assert (found["pairs"], found["pairs_won_ahead"]) == (3, 1)
    assert (found["alone_loss"], found["ahead_loss"], found["alone_hint_loss"]) == (2.0, 2.0, 0.0)
    assert found["ahead_loss_by_pair"] == [0.5, 2.0, 3.5]


def test_a_run_leaves_its_files_and_the_two_of_a_pair_start_alike(tmp_path, capsys):
    assert demo.run(options(steps=3, out=str(tmp_path / "run"))) == 0
    result = json.loads(capsys.readouterr().out)
    for kind in demo.KINDS:
        # As many hints as sums are measured.
        halves = result[f"{kind}_hint_loss"], result[f"{kind}_sum_loss"]
        assert result[f"{kind}_loss"] == pytest.approx(sum(halves) / 2, rel=1e-5)
        assert 0 <= result[f"{kind}_sums_known"] <= 1
    check_files(tmp_path / "run", *PHASES)
    ends = [rows(tmp_path / "run", phase)[-1]["validation_loss"] for phase in PHASES]
    assert len(set(ends)) == 4


def test_the_two_of_a_pair_start_alike(tmp_path, monkeypatch, capsys):
    seen, fit = [], demo.Session.fit

    def watched(self, step, state, source, **given):
        seen.append((state, [source.at(number) for number in range(2)]))
        return fit(self, step, state, source, **given)

    monkeypatch.setattr(demo.Session, "fit", watched)
    assert demo.run(options(steps=1, out=str(tmp_path / "run"))) == 0
    first, second, third, fourth = seen
    assert_same(first, second)
    assert_same(third, fourth)
    assert not mx.array_equal(first[1][0]["inputs"], third[1][0]["inputs"])


def test_looking_ahead_trains_the_heads_and_the_next_token_alone_does_not(tmp_path, capsys):
    assert demo.run(options(steps=2, out=str(tmp_path / "run"))) == 0
    for kind, moved in (("alone", False), ("ahead", True)):
        saved = ps.tree.items(state(tmp_path / "run", f"{kind}-1"))
        moments = [value for name, value in saved if "mtp" in name and ".mu" in name]
        assert moments
        assert any(mx.any(value != 0).item() for value in moments) is moved


@pytest.mark.parametrize("at", [3, 7])  # in the first phase, and in the second
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_interrupted(tmp_path, monkeypatch, capsys, at):
    monkeypatch.chdir(tmp_path)
    check_resumed(demo.run, capsys, at, stop, tuple(PHASES))


def test_the_picture_shows_the_figures_of_the_summary_as_means_and_bands(tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(demo.curves, "draw", lambda path, panels, title: drawn.append((panels, title)))
    assert demo.run(options(steps=3, out=str(tmp_path / "run"))) == 0
    result = json.loads(capsys.readouterr().out)
    [((losses, sums), title)] = drawn
    for panel, figure in ((losses, "loss"), (sums, "sums_known")):
        for kind, curve in zip(demo.KINDS, panel.curves, strict=True):
            last = curve.history[-1]
            assert last["step"] == 3
            assert last[curve.figure] == pytest.approx(result[f"{kind}_{figure}"])
            ends = result[f"{kind}_{figure}_by_pair"]
            assert [last[name] for name in curve.band] == pytest.approx([min(ends), max(ends)], abs=1e-4)
    assert "next-token loss" in losses.ylabel
    assert f"{result['ahead_loss']:.3f} with it" in title
    assert f"{result['alone_loss']:.3f} without" in title
    assert f"lower in {result['pairs_won_ahead']} of 2 pairs" in title


def test_the_phases_are_those_that_are_trained(tmp_path, capsys):
    assert demo.run(options(steps=1, out=str(tmp_path / "run"))) == 0
    assert demo.phases() == PHASES
    check_files(tmp_path / "run", *PHASES)
