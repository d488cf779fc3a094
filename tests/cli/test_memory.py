"""The command `memory`: what a run takes, and what would make it fit."""

import json

import mlx.core as mx
import pytest

from purestep.cli import memory, train
from tests.refusals import parts

CONFIG = """
data = "text.txt"
vocabulary = 64
context = 64
batch_size = 32
max_steps = 3
warmup_steps = 1
sample_tokens = 0
validation_batches = 1
[sizes]
width = 24
layers = 2
heads = 2
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.toml"
    path.write_text(CONFIG)
    return path


def call(capsys, *arguments):
    """Run the command; return its exit status, stdout and stderr."""
    code = memory.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    return code, said.out, said.err


def answer(capsys, *arguments):
    code, out, _ = call(capsys, *arguments, "--json")
    return code, json.loads(out)


def test_a_run_that_fits(config, capsys):
    code, found = answer(capsys, config)
    assert code == 0
    assert found["fits"]
    assert found["budget"] == mx.get_memory_limit()
    assert found["smaller"] == []
    assert found["peak_in_run"] > found["peak"] > found["parameters"] + found["optimizer"]
    code, out, _ = call(capsys, config)
    assert code == 0
    for word in ("parameters", "activations", "peak", "fits into"):
        assert word in out


def test_a_run_that_does_not_fit_is_shown_what_would(config, capsys):
    peak = answer(capsys, config)[1]["peak_in_run"]
    code, found = answer(capsys, config, "--budget", str(int(0.6 * peak)))
    assert code == 1
    *before, last = found["smaller"]
    assert last["fits"]
    assert not any(each["fits"] for each in before)
    values = [f"--{name.replace('_', '-')}={value}" for name, value in last["change"].items()]
    again = answer(capsys, config, *values, f"--budget={found['budget']}")
    assert again[0] == 0
    assert again[1]["peak"] == last["peak"]


def test_a_budget_that_nothing_fits(config, capsys):
    code, out, _ = call(capsys, config, "--budget", "20KB")
    assert code == 1
    assert "None of these fits" in out


def test_changes_that_do_not_help_are_left_out(config, capsys):
    small = ["--batch-size=8", "--context=8"]  # the state takes the most
    _, found = answer(capsys, config, *small, "--budget", "20KB")
    peaks = [found["peak_in_run"], *(each["peak_in_run"] for each in found["smaller"])]
    assert peaks == sorted(peaks, reverse=True)
    assert "grad_accumulation_steps" not in found["smaller"][-1]["change"]


def test_nothing_is_allocated_and_the_data_need_not_exist(config, capsys):
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    assert answer(capsys, config, "--sizes.width", "240")[0] == 0
    assert mx.get_peak_memory() - before < 20_000


@pytest.mark.skipif(mx.default_device() == mx.Device(mx.gpu), reason="a GPU's peak varies")
def test_the_prediction_is_the_peak_of_train(config, capsys):
    (config.parent / "text.txt").write_text("abcdefghijklmnopqrstuvwxyz\n" * 900)
    options = ["--context=128", "--batch-size=16", "--vocabulary=64", "--remat=blocks.*"]
    _, found = answer(capsys, config, *options)
    before = mx.get_active_memory()
    mx.synchronize()
    mx.reset_peak_memory()
    assert train.main([str(config), *options, "--json"]) == 0
    assert found["peak_in_run"] == pytest.approx(mx.get_peak_memory() - before, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--budget", "12parsecs"], "memory: --budget ... 16GB ... got '12parsecs'"),
        (["--budget", "0GB"], "memory: --budget ... got '0GB'"),
        (["--budget"], "memory: --budget needs a value"),
        (["--remat", "nothing.*"], "memory: ... pattern 'nothing.*' matches none"),
        (["--batch-size", "0"], "memory: ... batch_size ... at least 1, got 0"),
        (["--vocabulry", "9"], "memory: ... vocabulary"),
    ],
)
def test_wrong_arguments_are_refused(config, capsys, arguments, error):
    code, out, err = call(capsys, config, *arguments)
    assert (code, out) == (2, "")
    with pytest.raises(ValueError, match=parts(error)):
        raise ValueError(err)


def test_help_names_the_exit_statuses(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert "Exit status: 0" in out


def test_sizes_are_read_in_decimal_and_binary_units():
    sizes = {"16GB": 16 * 10**9, "1.5 GiB": 3 * 2**29, "7mb": 7 * 10**6, "12": 12}
    assert {text: memory.bytes_of(text) for text in sizes} == sizes
