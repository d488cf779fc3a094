"""The GRPO demo: the reward rises, and a resumed run ends with the same bits."""

import argparse
import json
import re

import pytest

from purestep.demos import grpo as demo
from purestep.demos.models import sorting
from tests.demos.runs import check_files, check_resumed, crash, options, rows, stop


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A model and batches small enough to run quickly without compilation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "TRAIN", 64)
    monkeypatch.setattr(demo, "TEST", 8)
    monkeypatch.setattr(demo, "GROUP_SIZE", 8)
    monkeypatch.setattr(demo, "BATCH_SIZE", 64)
    monkeypatch.setattr(demo, "Decoder", lambda: sorting.Decoder(width=16, layers=1, heads=2))


def run(**given):
    return demo.run(options(**{"out": "run", **given}))


def test_reward_rises_and_the_files_and_figures_are_there(tmp_path, monkeypatch, capsys):
    for module, name, value in (
        (sorting, "DIGITS", 1), (demo, "DIGITS", 1), (demo, "MAX_TOKENS", 2), (demo, "PEAK_RATE", 2e-2),
        (demo, "TRAIN", 8), (demo, "TEST", 2),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    assert run(steps=40) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["chance_reward"] < 0.15
    assert result["reward"] > result["chance_reward"] + 0.3
    assert {"test_reward", "test_sorted", "seconds"} <= result.keys()
    check_files(tmp_path / "run")
    ratios = [row["ratio"] for row in rows(tmp_path / "run") if "ratio" in row]
    assert ratios == pytest.approx([1.0] * 20, abs=1e-4)


@pytest.mark.parametrize("act", [stop, crash])
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_interrupted(capsys, act):
    check_resumed(demo.run, capsys, 3, act)


def test_its_options_are_those_of_a_short_demo(capsys):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    given = vars(parser.parse_args(["--steps", "3", "--seed", "2", "--no-compile", "--json"]))
    expected = {"steps": 3, "seed": 2, "compile": False, "json": True, "out": None, "resume": False}
    assert given == expected
    assert run(steps=1, json=False) == 0
    said = capsys.readouterr().out
    assert "grpo 1/1  0:00 left  loss" in said
    assert len(re.findall(r"^\d \d \d \d = ", said, flags=re.MULTILINE)) == 5
