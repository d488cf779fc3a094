"""The command `train`: what it writes, and that a resumed run is the same run."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import mlx.core as mx
import pytest

import purestep as ps
from purestep._loop.callbacks import lines, output
from purestep._loop.config.config import TrainConfig
from purestep.cli import train
from purestep.cli.training import session
from tests.cli import hostile
from tests.cli.train_runs import QUICK, TEXT, command, prepared, result, rows_of, same, state_of
from tests.refusals import parts


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Run in a directory with a text and a module."""
    yield from prepared(tmp_path, monkeypatch)


def test_a_run_learns_and_leaves_its_configuration_figures_and_samples(capsys, here):
    (here / "run.toml").write_text(
        'data = "text.txt"\nlearning_rate = 0.02\nbatch_size = 4\n[sizes]\nlayers = 1\n'
    )
    found = result(capsys, "run.toml", *QUICK, "--max-steps", "40", "--out", "run")
    assert found["steps"] == 40
    assert found["reason"] == "steps"
    assert found["validation_loss"] < 3.0  # log(28) = 3.33 for an untrained model
    rows = [json.loads(line) for line in (here / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(2, 41, 2))
    assert [row["step"] for row in rows if "eval_loss" in row] == list(range(4, 41, 4))
    assert rows[-1]["sample"] == [found["sample"]]
    assert len(found["sample"]) == 8 + 3
    stored = (here / "run/config.toml").read_text()
    assert "learning_rate = 0.02\n" in stored
    assert "[sizes]\nlayers = 1\nwidth = 12" in stored
    _, record = state_of("run")
    assert record.metadata["settings"]["learning_rate"] == 0.02
    assert TrainConfig.from_dict(
        {k: v for k, v in record.metadata["settings"].items() if k in TrainConfig.types()}
    )


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(capsys, here, monkeypatch):
    result(capsys, *QUICK, "--max-steps", "12", "--out", "whole")
    made = session.create_step

    def interrupted(*arguments, **options):
        step, count = made(*arguments, **options), [0]

        def signalling(state, batch):
            count[0] += 1
            if count[0] == 5:
                signal.raise_signal(signal.SIGINT)
            return step(state, batch)

        return signalling

    with monkeypatch.context() as patch:
        patch.setattr(session, "create_step", interrupted)
        code, out, err = command(capsys, *QUICK, "--max-steps", "12", "--out", "parts")
    assert code == 130
    assert "signal" in out
    assert err.endswith("To continue: python -m purestep train --resume --out parts")
    assert state_of("parts")[1].step < 12
    assert result(capsys, "--resume", "--out", "parts")["steps"] == 12
    assert same("whole", "parts")
    assert rows_of("whole") == rows_of("parts")


def test_a_run_that_another_process_writes_is_refused_in_one_line(capsys, here):
    result(capsys, *QUICK, "--max-steps", "4", "--out", "run")
    with ps.checkpoint.Checkpointer(here / "run/checkpoints") as writer:
        writer.save({"w": mx.zeros(1)}, step=99)
        writer.delete(99)  # the lock stays
        code, _, err = command(capsys, "--resume", "--out", "run", "--max-steps", "8")
    assert code == 2
    assert err.startswith("train: fit: ")
    assert f"{here}/run/checkpoints is being written by pid" in err


def test_a_run_is_resumed_with_its_own_settings_and_harmless_changes(capsys, here):
    result(capsys, *QUICK, "--max-steps", "4", "--lr-schedule", "constant", "--out", "run")
    before = (here / "run/config.toml").read_text()
    code, _, err = command(
        capsys,
        "--resume",
        "--out",
        "run",
        "--seed",
        "7",
        "--b2=0.9",
        "--sizes.width",
        "24",
        "--max-steps",
        "9",
    )
    assert code == 2
    wanted = "train: ... run ... seed is 7, not 42; b2 is 0.9, not None; sizes.width is 24, not 12. ... --out"
    assert re.search(parts(wanted), err)
    _, _, err = command(capsys, "--resume", "--out", "run", "--max-steps", "3")
    assert re.search(parts("train: max_steps ... 4, ... steps"), err)
    assert "already holds a run" in command(capsys, *QUICK, "--out", "run")[2]
    assert (here / "run/config.toml").read_text() == before
    code, out, _ = command(capsys, "--resume", "--out", "run", "--max-steps", "8", "--log-interval", "4")
    assert code == 0
    assert "max_steps is now 8; the run began with 4\n" in out
    result(capsys, *QUICK, "--max-steps", "8", "--lr-schedule", "constant", "--out", "whole")
    assert same("run", "whole")
    (here / "text.txt").write_text(TEXT.upper())
    _, _, err = command(capsys, "--resume", "--out", "run")
    assert re.search(parts("train: data ... began with"), err)


def test_a_model_of_the_user_trains_and_its_errors_are_one_line(capsys, here):
    quick = [*QUICK[:10], "--max-steps", "6", "--log-interval", "1", "--eval-interval", "2"]
    found = result(capsys, *quick, "--model", "users:build", "--sizes.width", "5", "--out", "fine")
    result(capsys, *quick, "--model", "users:build", "--sizes.width", "5", "--out", "again")
    assert same("fine", "again")  # the seed decides the weights
    assert found["parameters"] == len(set(TEXT)) * 5 + len(set(TEXT)) * 6
    code, _, err = command(capsys, *quick, "--model", "users:broken", "--out", "broken")
    assert code == 2
    assert err == "train: users:broken failed (NameError: name 'unknown' is not defined, users.py line 16)"
    code, _, err = command(capsys, *quick, "--model", "users:infinite", "--out", "infinite", "--json")
    assert code == 1
    assert err.startswith("train: stopped: ")
    assert "not finite at step 1" in err


@pytest.mark.filterwarnings("default::purestep.callbacks.MetricsWarning")
def test_a_full_disk_ends_no_training_and_is_told_once(capsys, here, monkeypatch):
    written = output.append_line

    def full(path, text):
        if '"step": 6' in text or '"step": 8' in text:
            raise OSError(28, "No space left on device", str(path))
        written(path, text)

    monkeypatch.setattr(lines, "append_line", full)
    code, out, err = command(capsys, *QUICK, "--max-steps", "8", "--out", "run")
    assert code == 0
    assert err == (
        "train: warning: jsonl: run/metrics.jsonl cannot be written, training goes on: "
        "No space left on device"
    )
    assert "train 8/8" in out
    result(capsys, *QUICK, "--max-steps", "8", "--out", "whole")
    assert same("run", "whole")


def test_the_output_is_plain_in_a_pipe_and_has_no_control_characters(capsys, here):
    (here / "text.txt").write_text("".join(hostile.NAMES).replace("\udcff", "") * 20 + TEXT)
    code, out, err = command(
        capsys, *QUICK, "--max-steps", "4", "--out", "run", "--validation-fraction", "0.9"
    )
    assert (code, err) == (0, "")
    hostile.check(out)
    assert "train 4/4  0:00 left  loss " in out


def test_a_narrow_terminal_shows_a_live_line_within_its_width(here, monkeypatch):
    screen = hostile.Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    for name, value in (("COLUMNS", "60"), ("LINES", "20"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    assert train.main([*QUICK, "--max-steps", "6", "--out", "run"]) == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n")
    assert max(map(len, plain.splitlines())) <= 60
    assert "train 6/6 " in plain
    hostile.check(plain)


def test_a_process_with_an_ascii_locale_writes_ascii_and_survives_a_kill(here):
    (here / "text.txt").write_text("größe … “a” " * 200, encoding="utf-8")
    whole = [*QUICK, "--max-steps", "400", "--checkpoint-interval", "3", "--eval-interval", "400"]
    killed = subprocess.Popen(
        [sys.executable, "-m", "purestep", "train", *whole, "--out", "run"], stdout=subprocess.DEVNULL
    )
    while not list(here.glob("run/checkpoints/step_*")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    done = subprocess.run(
        [sys.executable, "-m", "purestep", "train", "--resume", "--out", "run"],
        env={**os.environ, "LC_ALL": "C", "LANG": "C"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"sample: " in done.stdout.decode("ascii").encode()
    assert train.main([*whole, "--out", "whole", "--json"]) == 0
    assert same("run", "whole")
    assert rows_of("run") == rows_of("whole")


def test_json_needs_no_extra_and_help_lists_every_setting(capsys, here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setitem(sys.modules, "purestep.cli.training.screen", None)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert result(capsys, *QUICK, "--max-steps", "2", "--out", "run")["steps"] == 2
    assert train.main(["--help"]) == 0
    said = capsys.readouterr().out
    for name in (*TrainConfig.types(), "data", "model", "context", "out", "resume", "json"):
        assert f"--{name.replace('_', '-')} " in said
    assert "the largest rate, greater than 0 (default 0.0003)" in said
    assert "Exit status: 0 the run is complete" in said


def test_every_field_of_the_configuration_changes_the_run(capsys, here):
    """No field is ignored: each one changes the state, the files or the step function."""
    base = [
        *QUICK,
        "--max-steps",
        "6",
        "--lr-schedule",
        "linear",
        "--warmup-steps",
        "1",
        "--learning-rate",
        "0.01",
    ]
    result(capsys, *base, "--out", "base")
    changed = {
        "learning-rate": "0.02", "weight-decay": "0.5", "warmup-steps": "3", "max-steps": "5",
        "batch-size": "3", "grad-accumulation-steps": "2", "max-grad-norm": "0.01", "optimizer": "lion",
        "lr-schedule": "cosine", "seed": "1", "min-lr-ratio": "0.9", "b1": "0.5", "b2": "0.5",
        "dtype": "bfloat16",
    }  # fmt: skip
    for name, value in changed.items():
        result(capsys, *base, f"--{name}", value, "--out", name)
        assert not same("base", name), name
    often = ["--eval-interval=3", "--log-interval=3", "--checkpoint-interval=2", "--keep=9"]
    result(capsys, *base, *often, "--out", "often")
    rows = [json.loads(line) for line in (here / "often/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 3, 6, 6]
    assert {path.name for path in (here / "often/checkpoints").glob("step_*")} >= {
        "step_00000002",
        "step_00000004",
    }


def test_measurements_reach_the_rows_and_change_no_parameter_also_after_a_resume(capsys, here):
    result(capsys, *QUICK, "--max-steps", "4", "--out", "plain")
    measured = [*QUICK, "--measure", "drift,weight_norms", "--measure-every", "2", "--out", "run"]
    result(capsys, *measured, "--max-steps", "2", "--lr-schedule", "constant")
    result(capsys, "--resume", "--max-steps", "4", "--out", "run")
    result(capsys, *measured[:-1], "whole", "--max-steps", "4", "--lr-schedule", "constant")
    result(capsys, *QUICK, "--max-steps", "4", "--lr-schedule", "constant", "--out", "without")
    assert same("run", "whole")
    assert same("whole", "without")
    rows = {name: [row for row in rows_of(name) if "loss" in row] for name in ("run", "whole")}
    assert rows["run"] == rows["whole"]
    drifts = [[value for key, value in row.items() if key.startswith("drift/")] for row in rows["run"]]
    assert [row["step"] for row in rows["run"]] == [2, 4]
    assert 0 < sum(drifts[0]) < sum(drifts[1])  # from the first parameters, not from those of the resume
    assert not any("/" in key for row in rows_of("plain") for key in row)


def test_a_profile_of_the_steps_is_shown_and_written(capsys, here):
    code, out, err = command(capsys, *QUICK, "--max-steps", "6", "--out", "run", "--profile")
    assert (code, err) == (0, "")
    assert "wait for the device" in out or "dispatch" in out
    assert "profile.json" in out
    content = json.loads((here / "run/profile.json").read_text())
    assert [row["step"] for row in content["rows"]] == [4, 5, 6]
    assert same("run", "run")
