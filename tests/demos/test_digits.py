"""The digits demo: it learns, it can be resumed to the bit, and its data is what UCI published."""

import json

import mlx.core as mx
import pytest

from purestep.demos import digits as demo
from purestep.demos.models.convolution import handwritten
from tests.demos.runs import check_files, check_resumed, crash, options, rows, stop


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
    check_files(here / "run")
    assert rows(here / "run")[-1]["test_accuracy"] == result["test_accuracy"]


@pytest.mark.parametrize(("at", "act"), [(1, stop), (3, crash)])
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(capsys, at, act):
    check_resumed(demo.run, capsys, at, act)
