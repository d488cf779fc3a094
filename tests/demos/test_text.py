"""The text demo: an interrupted run ends with the same bits, and a NaN stops a run."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import mlx.core as mx
import pytest
from rich.console import Console

import purestep as ps
from purestep import checkpoint
from purestep.demos import text as demo
from purestep.demos.shared.run_directory import RunDirectory, latest, next_free
from purestep.demos.shared.running import StoppedError
from tests._loop.workload import assert_same
from tests.demos.runs import options
from tests.demos.runs import rows as rows_of

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


def a_run(path, book, *, begun=False, **settings):
    settings = demo.Settings(steps=STEPS, compile=False, **settings)
    directory = RunDirectory(str(path))
    if not begun:
        directory.start({"demo": "text", "settings": dataclasses.asdict(settings)})
    return demo.Run(settings, book, directory, Console(quiet=True))


class Interrupting(ps.callbacks.Callback):
    """Raises, or stops the run as a signal does, at a step."""

    def __init__(self, at, error=None):
        self.at, self.error = at, error

    def on_step_end(self, progress):
        if progress.step == self.at:
            if self.error is not None:
                raise self.error
            os.kill(os.getpid(), signal.SIGTERM)


def saved(run):
    with checkpoint.Checkpointer(run.directory.path / "checkpoints") as checkpointer:
        return checkpointer.restore(like=run.initial).state


@pytest.mark.parametrize("settings", [{}, {"microbatches": 4}, {"dtype": "bfloat16", "seed": 3}])
def test_a_run_interrupted_at_any_step_ends_with_the_bits_of_one_that_was_not(tmp_path, book, settings):
    whole = a_run(tmp_path / "whole", book, **settings).train()
    for after in range(1, STEPS):
        path = tmp_path / f"stopped-{after}"
        stopped = a_run(path, book, **settings)
        with pytest.raises(StoppedError, match=f"after step {after}"):
            stopped.train(Interrupting(after))
        assert saved(stopped).step.item() == after
        resumed = a_run(path, book, begun=True, **settings).train()
        assert_same(resumed.state, whole.state)
        assert resumed.history.to_plain() == whole.history.to_plain()
    losses = [[row["loss"] for row in rows_of(p) if "loss" in row] for p in (tmp_path / "whole", path)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS


def test_a_run_killed_between_checkpoints_goes_on_from_the_last_one(tmp_path, book):
    whole = a_run(tmp_path / "whole", book).train()
    killed = a_run(tmp_path / "killed", book)
    with pytest.raises(KeyboardInterrupt):
        killed.train(Interrupting(4, KeyboardInterrupt()))
    with killed.directory.metrics.open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by the crash
    assert saved(killed).step.item() == 2  # the last evaluation
    resumed = a_run(tmp_path / "killed", book, begun=True).train()
    assert_same(resumed.state, whole.state)
    assert [row["step"] for row in rows_of(tmp_path / "killed") if "loss" in row] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("broken", ["targets", "params"])
def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, book, broken):
    run = a_run(tmp_path / "run", book)
    at = run.source.at

    class Poisoned:
        def at(self, step):
            batch = at(step)
            if step == 3 and broken == "targets":
                batch["targets"] = batch["targets"] + 10_000
            return batch

    run.source = Poisoned()  # type: ignore
    if broken == "params":
        step = run.step

        def poisoned(state, batch):
            if state.step.item() == 3:
                params = {**state.params, "norm": {"weight": state.params["norm"]["weight"] * mx.nan}}
                state = state.replace(params=params)
            return step(state, batch)

        run.step = poisoned
    with pytest.raises(
        FloatingPointError, match=r"grad_norm .*not finite .*step 4; .*parameter .*embedding.weight"
    ):
        run.train()
    assert saved(run).step.item() == 2


def test_a_whole_run_leaves_its_files_and_prints_one_line_of_json(tmp_path, book, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text(book)
    assert demo.run(options(steps=STEPS, data="book.txt")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["out"] == "runs/text"
    assert result["steps"] == STEPS
    names = {file.name for file in (tmp_path / "runs/text").iterdir()}
    assert names == {
        "run.json", "metrics.jsonl", "state.safetensors", "loss.png", "sample.txt", "checkpoints",
    }  # fmt: skip
    assert (tmp_path / "runs/text/loss.png").read_bytes().startswith(b"\x89PNG")
    rows = rows_of(tmp_path / "runs/text")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5]
    assert rows[-1]["validation_loss"] == result["validation_loss"]
    assert {"loss", "grad_norm", "learning_rate", "tokens_per_second"} <= rows[1].keys()

    # A second run takes a directory of its own; resuming a finished one trains no further.
    assert demo.run(options(steps=2, data="book.txt")) == 0
    assert latest("runs/text") == "runs/text-2"
    assert next_free("runs/text") == "runs/text-3"
    before = (tmp_path / "runs/text/state.safetensors").read_bytes()
    assert demo.run(options(resume=True, out="runs/text")) == 0
    assert (tmp_path / "runs/text/state.safetensors").read_bytes() == before
    assert (
        json.loads(capsys.readouterr().out.splitlines()[-1])["validation_loss"] == result["validation_loss"]
    )


def test_what_contradicts_a_run_is_refused(tmp_path, book, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text(book)
    assert demo.run(options(steps=1, data="book.txt", out="run")) == 0
    with pytest.raises(ValueError, match="demo: --out run already"):
        demo.run(options(steps=1, data="book.txt", out="run"))
    with pytest.raises(ValueError, match="demo: --seed .*5, .*run .* 0: "):
        demo.run(options(resume=True, out="run", seed=5))
    (tmp_path / "book.txt").write_text(book + "more")
    with pytest.raises(ValueError, match="demo: --data .*began with"):
        demo.run(options(resume=True, out="run"))


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
