"""The digits demo: it learns, it can be resumed to the bit, and its data is what UCI published."""

import json

import mlx.core as mx
import pytest

import purestep as ps
from purestep.demos import digits as demo
from purestep.demos.models.convolution import handwritten
from tests._loop.workload import assert_same
from tests.demos.runs import options, rows


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(**given):
    return demo.run(options(**{"out": "run", **given}))


def test_the_data_is_the_published_one():
    images, digits = handwritten()
    counts = [int((digits == digit).sum().item()) for digit in range(10)]
    assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # UCI's own table of the test set
    assert (float(images.min().item()), float(images.max().item())) == (0.0, 1.0)
    learnt, tested = demo.split(3)
    assert (len(learnt["digits"]), len(tested["digits"])) == (1437, 360)
    assert mx.array_equal(demo.split(3)[1]["images"], tested["images"])


def test_it_learns_to_read_and_writes_its_files(here, capsys):
    assert run(steps=120) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["test_accuracy"] > 0.95
    assert {file.name for file in (here / "run").iterdir()} == {
        "run.json", "metrics.jsonl", "curves.png", "checkpoints",
    }  # fmt: skip
    assert rows(here / "run")[-1]["test_accuracy"] == result["test_accuracy"]


def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(here, monkeypatch, capsys):
    assert run(steps=16, out="whole") == 0
    whole = json.loads(capsys.readouterr().out)
    fit = ps.fit

    def interrupted(step, state, source, **given):
        """Raise as a crash in the fifth step would, after a checkpoint of the fourth."""

        def dying(state, batch):
            if int(state.step.item()) == 5:
                raise RuntimeError("a crash")
            return step(state, batch)

        return fit(dying, state, source, **given)

    monkeypatch.setattr(ps, "fit", interrupted)
    with pytest.raises(RuntimeError, match="a crash"):
        run(steps=16, out="part")
    monkeypatch.setattr(ps, "fit", fit)
    capsys.readouterr()
    assert demo.run(options(out="part", resume=True)) == 0
    part = json.loads(capsys.readouterr().out)
    assert part["test_loss"] == whole["test_loss"]
    states = [
        ps.checkpoint.Checkpointer(here / name / "checkpoints").restore().state for name in ("whole", "part")
    ]
    assert_same(*states)
    strip = [
        [{**row, "seconds": 0} for row in rows(here / name) if "test_loss" in row]
        for name in ("whole", "part")
    ]
    assert strip[0] == strip[1]
