"""Records: their files, while a benchmark runs and after."""

import argparse
import json
import sys

import pytest

from benchmarks.harness import Bar, Panel, Record, Spread, records

FACTS = {"device": "NVIDIA H100 80GB HBM3", "cores": 2, "load": 0.1, "mlx": "0.32.4"}
PANELS = [Panel("Step", "ms", [Bar("purestep", Spread(1.0, 1.0, 1.0))])]


def made(folder):
    options = argparse.Namespace(rounds=2, json=False, save=True, limit=250.0)
    record = Record("step", options, folder)
    record.keep(facts=FACTS)
    return record


def test_a_record_is_written_after_each_round_and_replaced_in_the_end(tmp_path):
    pytest.importorskip("matplotlib")
    record = made(tmp_path)
    stem = "step-nvidia-h100-80gb-hbm3"
    partial = tmp_path / f"{stem}.partial.json"
    record.keep(rounds_made=1)
    assert json.loads(partial.read_text())["rounds_made"] == 1
    record.keep(rounds_made=2)
    record.save("the table", PANELS)
    assert {path.name for path in tmp_path.iterdir()} == {f"{stem}.{end}" for end in ("json", "txt", "png")}
    assert (tmp_path / f"{stem}.txt").read_text() == "the table\n"
    found = records.load(tmp_path / f"{stem}.json")
    assert found == record.plain()
    assert found["options"] == {"rounds": 2}


def test_without_a_folder_nothing_is_written():
    record = made(None)
    record.save("the table", PANELS)
    assert record.found["facts"] == FACTS


def test_without_matplotlib_the_rest_is_written_and_a_note_says_so(tmp_path, monkeypatch, capsys):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    made(tmp_path).save("the table", PANELS)
    assert "matplotlib is not installed" in capsys.readouterr().err
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".txt"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"benchmark": "step", "label": "step"}'])
def test_a_file_that_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="show: FILE must be a record of a benchmark, got"):
        records.load(path)
    with pytest.raises(ValueError, match="got .*absent.json"):
        records.load(tmp_path / "absent.json")
