"""The multi-token demo: its sums are right, both runs start alike, and a run leaves its files."""

import argparse
import json

import mlx.core as mx
import pytest

from purestep.demos import mtp as demo


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A model small enough to run uncompiled in no time."""
    monkeypatch.setattr(demo, "BATCH_SIZE", 8)
    monkeypatch.setattr(demo, "HELD_OUT", 16)
    monkeypatch.setattr(demo, "WIDTH", 12)
    monkeypatch.setattr(demo, "HEADS", 2)
    monkeypatch.setattr(demo, "LAYERS", 1)


def options(**given):
    return argparse.Namespace(**{"out": None, "resume": False, "json": True, "compile": False, **given})


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_the_source_adds():
    digits = 3
    batch = demo.Sums(digits, 50, seed=0).at(7)
    for inputs, targets in zip(batch["inputs"].tolist(), batch["targets"].tolist(), strict=True):
        tokens = [*inputs, targets[-1]]
        written = "".join("0123456789+="[token] for token in tokens)
        left, right = written.split("=")
        a, b = left.split("+")
        assert (len(a), len(b), len(right)) == (digits, digits, digits + 1)
        assert int(a) + int(b) == int(right)
        assert targets == [-100] * (2 * digits + 1) + tokens[2 * digits + 2 :]


def test_a_source_is_a_function_of_step_and_seed():
    tokens = [
        demo.Sums(3, 4, seed).at(step)["inputs"].tolist() for seed, step in ((0, 1), (0, 1), (0, 2), (1, 1))
    ]
    assert tokens[0] == tokens[1]
    assert tokens[0] not in tokens[2:]
    assert mx.array(tokens).dtype == mx.int32


def test_a_run_leaves_its_files_and_both_phases_start_alike(tmp_path, capsys):
    assert demo.run(options(steps=3, out=str(tmp_path / "run"))) == 0
    result = json.loads(capsys.readouterr().out)
    for phase in ("alone", "ahead"):
        assert result[f"{phase}_validation_loss"] > 0
        assert 0 <= result[f"{phase}_sums_right"] <= result[f"{phase}_digits_right"] <= 1
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    first = [row for row in rows(tmp_path / "run") if row["step"] == 0]
    assert [row.pop("phase") for row in first] == list(demo.PHASES)
    assert first[0] == first[1]
    last = [row for row in rows(tmp_path / "run") if row["step"] == 3]
    assert last[0]["validation_loss"] != last[1]["validation_loss"]


def test_a_resumed_run_ends_the_same(tmp_path, capsys, monkeypatch):
    def ends(path):
        return {phase: (path / f"{phase}.safetensors").read_bytes() for phase in demo.PHASES}

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert demo.run(options(steps=4, out=str(whole))) == 0
    train = demo.Session.train

    def dying(self, phase, *arguments, **named):
        if phase == "ahead":
            raise KeyboardInterrupt
        return train(self, phase, *arguments, **named)

    monkeypatch.setattr(demo.Session, "train", dying)
    with pytest.raises(KeyboardInterrupt):
        demo.run(options(steps=4, out=str(stopped)))
    monkeypatch.setattr(demo.Session, "train", train)
    assert demo.run(options(resume=True, out=str(stopped))) == 0
    assert ends(whole) == ends(stopped)
