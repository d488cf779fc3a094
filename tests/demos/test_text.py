"""The text demo: an interrupted run ends with the same bits, and a NaN stops a run."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import purestep as ps
from purestep.demos import text as demo
from purestep.demos.shared.run_directory import latest, next_free
from tests._loop.workload import assert_same
from tests.demos.runs import acting, check_files, check_resumed, crash, options, rows, state, stop

STEPS = 5


@pytest.fixture(scope="module")
def book():
    return "".join(f"the {n}th word of a long and tiring book, {n * n % 97}. " for n in range(120))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A model small enough to run quickly without compilation."""
    monkeypatch.setattr(demo, "CONTEXT", 8)
    monkeypatch.setattr(demo, "SAMPLE", 5)
    original = demo.Transformer
    small = lambda vocabulary: original(vocabulary, width=12, layers=1, heads=2, buckets=32)  # noqa: E731
    monkeypatch.setattr(demo, "Transformer", small)


@pytest.fixture
def here(tmp_path, book, monkeypatch):
    """Run in a directory that holds the book."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text(book)
    return tmp_path


def run(given):
    """Run the demo on the book."""
    return demo.run(argparse.Namespace(**{"data": "book.txt", **vars(given)}))


@pytest.mark.parametrize("settings", [{}, {"microbatches": 4}, {"dtype": "bfloat16", "seed": 3}])
@pytest.mark.parametrize(("at", "act"), [(1, stop), (3, stop), (4, stop), (2, crash)])
def test_a_run_that_is_stopped_ends_with_the_bits_of_one_that_is_not(here, capsys, at, act, settings):
    given = lambda options: argparse.Namespace(**{**vars(options), **settings})  # noqa: E731
    check_resumed(lambda options: run(given(options)), capsys, at, act)
    ends = [(here / name / "state.safetensors").read_bytes() for name in ("whole", "part")]
    assert ends[0] == ends[1]
    assert (here / "whole/sample.txt").read_text() == (here / "part/sample.txt").read_text()


def test_metrics_that_a_crash_cut_short_are_mended(here, capsys):
    assert run(options(steps=STEPS, out="whole")) == 0
    with acting(4, crash):
        assert run(options(steps=STEPS, out="part")) == 130
    with (here / "part/metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert run(options(resume=True, out="part")) == 0
    assert rows(here / "part") == rows(here / "whole")
    assert_same(state(here / "part"), state(here / "whole"))


@pytest.mark.parametrize("as_json", [True, False])
def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_good_checkpoint(
    here, capsys, monkeypatch, as_json
):
    class Poisoned(ps.data.RandomWindows):
        def at(self, step):
            batch = super().at(step)
            return {**batch, "targets": batch["targets"] + 10_000 * (step == 3)}

    monkeypatch.setattr(ps.data, "RandomWindows", Poisoned)
    assert run(options(steps=STEPS, out="run", json=as_json)) == 1
    said = capsys.readouterr()
    said = said.err.removeprefix("demo: ") if as_json else said.out[said.out.index("stopped: ") + 9 :]
    assert said.startswith("grad_norm is not finite at step 4; the first parameter that is not finite is emb")
    kept = f"the step is kept in {here}/run/bundles/step_00000003; the checkpoint of step 3 is kept in "
    assert said.endswith(f"{kept}{here}/run/checkpoints\n")
    assert state(here / "run")["step"].item() == 3


def test_a_whole_run_leaves_its_files_and_prints_one_line_of_json(here, capsys):
    assert run(options(steps=STEPS)) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["out"] == "runs/text"
    assert result["steps"] == STEPS
    check_files(here / "runs/text", others=("loss.png", "sample.txt", "state.safetensors"))
    found = [json.loads(line) for line in (here / "runs/text/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in found if "loss" in row] == [1, 2, 3, 4, 5]
    assert found[-1]["validation_loss"] == result["validation_loss"]
    assert {"loss", "grad_norm", "learning_rate", "tokens"} <= found[2].keys()

    # A second run takes a directory of its own; resuming a finished one trains no further.
    assert run(options(steps=2)) == 0
    assert latest("runs/text") == "runs/text-2"
    assert next_free("runs/text") == "runs/text-3"
    before = (here / "runs/text/state.safetensors").read_bytes()
    assert demo.run(options(resume=True, out="runs/text")) == 0
    assert (here / "runs/text/state.safetensors").read_bytes() == before
    assert (
        json.loads(capsys.readouterr().out.splitlines()[-1])["validation_loss"] == result["validation_loss"]
    )


def test_another_text_is_refused(here, book):
    assert run(options(steps=1, out="run")) == 0
    (here / "book.txt").write_text(book + "more")
    with pytest.raises(ValueError, match="demo: --data .*began with"):
        demo.run(options(resume=True, out="run"))


def test_ctrl_c_while_the_run_is_prepared_ends_it_before_its_first_step(here, capsys, monkeypatch):
    def interrupted(*texts):
        signal.raise_signal(signal.SIGINT)
        return 1.0

    monkeypatch.setattr(demo, "ngram_loss", interrupted)
    assert run(options(steps=STEPS, out="run", json=False)) == 130
    said = capsys.readouterr().out
    command = "python -m purestep demo text --resume --out run"
    assert f"interrupted before the first step. To continue:\n  {command}\n" in said
    assert not list((here / "run/checkpoints").glob("step_*"))


def test_ctrl_c_checkpoints_and_prints_the_command_that_resumes(tmp_path, book):
    (tmp_path / "book.txt").write_text(book)
    environment = {**os.environ, "PURESTEP_BLAS": "bundled"}

    def command(*arguments):
        return [sys.executable, "-m", "purestep", "demo", *arguments]

    def start(*arguments):
        return subprocess.Popen(
            command(*arguments),
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            # A shell without job control starts its background commands with Ctrl-C ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    fresh = ("--data", "book.txt", "--steps", "8", "--no-compile", "--out")
    whole = start(*fresh, "whole")
    stopped = start(*fresh, "stopped")
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    stopped.send_signal(signal.SIGINT)
    said = stopped.communicate(timeout=120)[0]
    assert stopped.returncode == 130
    assert "python -m purestep demo text --resume --out stopped" in said
    resumed = subprocess.run(
        command("text", "--resume", "--out", "stopped"),
        cwd=tmp_path, env=environment, check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    whole.communicate(timeout=120)
    assert whole.returncode == 0
    assert "validation loss" in resumed.stdout
    ends = [(tmp_path / name / "state.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert ends[0] == ends[1]


def test_a_compiled_run_on_the_default_text_beats_the_trigram_model(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "purestep", "demo", "--steps", "150", "--out", "run", "--json"],
        cwd=tmp_path, check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    result = json.loads(run.stdout)
    assert result["validation_loss"] < result["trigram_loss"] - 0.05
    assert len((tmp_path / "run" / "sample.txt").read_text()) == 64 + 500
