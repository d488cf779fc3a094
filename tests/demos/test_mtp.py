"""The multi-token demo: hints, equal starts of a pair, the summary and the files of a run."""

import json
import math
from typing import Any

import mlx.core as mx
import pytest

from purestep.demos import mtp as demo
from tests.demos.runs import check_files, options, rows


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
    def ends(*losses):
        return [dict.fromkeys(demo.FIGURES, 0.0) | {"validation_loss": loss} for loss in losses]

    found = demo.summary({"alone": ends(1.0, 2.0, 3.0), "ahead": ends(0.5, 2.0, 3.5)})
    assert (found["pairs"], found["pairs_won_ahead"]) == (3, 1)
    assert (found["alone_validation_loss"], found["ahead_validation_loss"]) == (2.0, 2.0)
    assert found["ahead_validation_loss_by_pair"] == [0.5, 2.0, 3.5]


def test_a_run_leaves_its_files_and_the_two_of_a_pair_start_alike(tmp_path, capsys):
    assert demo.run(options(steps=3, out=str(tmp_path / "run"))) == 0
    result = json.loads(capsys.readouterr().out)
    for kind in demo.KINDS:
        # As many hints as sums are measured.
        halves = result[f"{kind}_hint_loss"], result[f"{kind}_sum_loss"]
        assert result[f"{kind}_validation_loss"] == pytest.approx(sum(halves) / 2, rel=1e-5)
        assert 0 <= result[f"{kind}_sums_known"] <= 1
    check_files(tmp_path / "run", *PHASES)
    first = [row for row in rows(tmp_path / "run") if row["step"] == 0]
    assert [row.pop("phase") for row in first] == PHASES
    assert first[0] == first[1]
    assert first[2] == first[3]
    assert first[0] != first[2]
    last = [row for row in rows(tmp_path / "run") if row["step"] == 3]
    assert last[0]["validation_loss"] != last[1]["validation_loss"]


def test_looking_ahead_trains_the_heads_and_the_next_token_alone_does_not(tmp_path, capsys):
    assert demo.run(options(steps=2, out=str(tmp_path / "run"))) == 0
    for kind, moved in (("alone", False), ("ahead", True)):
        saved: Any = mx.load(str(tmp_path / "run" / f"{kind}-1.safetensors"))
        moments = [value for name, value in saved.items() if "mtp" in name and ".mu" in name]
        assert moments
        assert any(mx.any(value != 0).item() for value in moments) is moved


def test_a_resumed_run_ends_the_same(tmp_path, capsys, monkeypatch):
    def ends(path):
        return {phase: (path / f"{phase}.safetensors").read_bytes() for phase in PHASES}

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert demo.run(options(steps=4, out=str(whole))) == 0
    train = demo.Session.train

    def dying(self, phase, *arguments, **named):
        if phase == "ahead-1":
            raise KeyboardInterrupt
        return train(self, phase, *arguments, **named)

    monkeypatch.setattr(demo.Session, "train", dying)
    assert demo.run(options(steps=4, out=str(stopped))) == 130
    monkeypatch.setattr(demo.Session, "train", train)
    assert demo.run(options(resume=True, out=str(stopped))) == 0
    assert ends(whole) == ends(stopped)


def test_the_picture_shows_the_figures_of_the_summary_as_means_and_bands(tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(demo.curves, "draw", lambda path, panels, title: drawn.append((panels, title)))
    assert demo.run(options(steps=3, out=str(tmp_path / "run"))) == 0
    result = json.loads(capsys.readouterr().out)
    [((losses, sums), title)] = drawn
    for panel, figure in ((losses, "validation_loss"), (sums, "sums_known")):
        for kind, curve in zip(demo.KINDS, panel.curves, strict=True):
            last = curve.history[-1]
            assert last["step"] == 3
            assert last[curve.figure] == pytest.approx(result[f"{kind}_{figure}"])
            ends = result[f"{kind}_{figure}_by_pair"]
            assert [last[name] for name in curve.band] == pytest.approx([min(ends), max(ends)], abs=1e-4)
    assert "next-token loss" in losses.ylabel
    assert f"{result['ahead_validation_loss']:.3f} with it" in title
    assert f"{result['alone_validation_loss']:.3f} without" in title
    assert f"lower in {result['pairs_won_ahead']} of 2 pairs" in title


def test_the_phases_are_those_that_are_trained(tmp_path, capsys):
    assert demo.run(options(steps=1, out=str(tmp_path / "run"))) == 0
    assert list(dict.fromkeys(row["phase"] for row in rows(tmp_path / "run"))) == demo.phases() == PHASES
