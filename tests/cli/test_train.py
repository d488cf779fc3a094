"""The command `train`: what it refuses, what it writes, and that a resumed run is the same run."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import purestep as ps
from purestep._loop.config.config import TrainConfig
from purestep.cli import train
from purestep.cli.training import recording, session
from tests.cli import hostile
from tests.refusals import parts

TEXT = "the quick brown fox jumps over the lazy dog. " * 60
QUICK = (
    *(
        "--data",
        "text.txt",
        "--context",
        "8",
        "--batch-size",
        "4",
        "--warmup-steps",
        "2",
        "--sample-tokens",
        "3",
    ),
    *("--sizes.width", "12", "--sizes.heads", "2", "--sizes.layers", "1", "--sizes.buckets", "64"),
    *("--eval-interval", "4", "--log-interval", "2", "--validation-batches", "2", "--no-compile-step"),
)
USERS = """
import mlx.core as mx, mlx.nn as nn, purestep as ps

def build(config, data):
    embedding = nn.Embedding(data.vocabulary, data.sizes.get("width", 8))
    head = nn.Linear(embedding.weight.shape[1], data.vocabulary)
    apply, params, _ = ps.functional(nn.Sequential(embedding, head))
    def loss_fn(params, batch, rng):
        logits = apply(params, batch["inputs"], rng=rng)
        return ps.losses.cross_entropy(logits, batch["targets"], ignore_index=-100)
    return loss_fn, params, apply

def broken(config, data):
    _, params, apply = build(config, data)
    def loss_fn(params, batch, rng):
        return unknown
    return loss_fn, params

def infinite(config, data):
    loss_fn, params, _ = build(config, data)
    return lambda params, batch, rng: loss_fn(params, batch, rng) * mx.array(float("nan")), params

def failing(config, data):
    raise RuntimeError("no weights")

def three(config, data):
    return 3

class Tokenizer:
    vocab_size = 128
    def encode(self, text):
        return [ord(letter) % 100 for letter in text]
    def decode(self, tokens):
        return "".join(map(chr, tokens))
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Run in a directory with a text and a module, without a restart for OpenBLAS."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PURESTEP_BLAS", "bundled")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "users.py").write_text(USERS)
    yield tmp_path
    sys.modules.pop("users", None)


def command(capsys, *arguments):
    """Run the command; return its status, its output and its errors."""
    code = train.main(arguments)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err.strip()


def result(capsys, *arguments):
    """Run a command that must succeed; return its figures."""
    code, out, err = command(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def state_of(path):
    """Return the arrays of the newest checkpoint of a run, by path."""
    restored, record = ps.checkpoint.Checkpointer(Path(path) / "checkpoints").restore()
    return {name: np.array(leaf) for name, leaf in ps.tree.items(restored)}, record


def same(first, second):
    """Tell whether two runs have the same newest state, bit for bit."""
    one, other = state_of(first)[0], state_of(second)[0]
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


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
    assert found["sample"] in (here / "run/samples.txt").read_text()
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

    def interrupted(*arguments):
        step, count = made(*arguments), [0]

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
    rows = [(here / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert rows[0] == rows[1]


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "train: data ... file ... got nothing"),
        (["absent.toml"], "No such file or directory: 'absent.toml'"),
        (["--data", "absent"], "No such file or directory: 'absent'"),
        (["--data", "."], "data ... file, . is a directory"),
        (["--data", "empty"], "train: data ... empty, empty is"),
        (["--data", "noise"], "noise ... UTF-8, got byte 0xff at position 1"),
        (["--data", "short"], "data ... 65 tokens ... context=64, got 3"),
        (["--data", "bad.jsonl"], "train: data: line 2 of bad.jsonl ... field 'text', got txet"),
        (["--data", "worse.jsonl"], "train: data: line 1 of worse.jsonl ... JSON object, got b'{'"),
        (["--data", "tokens.bin"], "token_dtype ... without a description"),
        (["--data", "odd.bin", "--token-dtype", "uint16"], "odd.bin ... whole uint16 tokens"),
        (["--data", "tokens.npy", "--vocabulary", "40"], "[0, 40), ... vocabulary, got 49"),
        (["--data", "tokens.npy", "--prompt", "a"], "prompt ... text to learn"),
        (["--data", "text.txt", "--validation", "other"], "characters ... data, other has '!Z'"),
        (["--data", "text.txt", "--prompt", "Z"], "prompt ... characters ... vocabulary"),
        (["--data", "text.txt", "--model", "gpt"], "model ... transformer, ... module:function"),
        (["--data", "text.txt", "--model", "absent:build"], "importing absent failed (ModuleNotFoundError"),
        (["--data", "text.txt", "--model", "users:absent"], "train: model: users has no absent"),
        (["--data", "text.txt", "--model", "users:failing"], "(RuntimeError: no weights, users.py line 24)"),
        (["--data", "text.txt", "--model", "users:three"], "users:three ... (loss_fn, params)"),
        (["--data", "text.txt", "--tokenizer", "users:three"], "train: tokenizer: ... failed (TypeError"),
        (["--data", "text.txt", "--sizes.widht", "8"], "no size 'widht'; ... width?"),
        (["--data", "text.txt", "--sizes.width", "50"], "sizes.width ... 2 * heads, 6, got 50"),
        (["--data", "text.txt", "--sizes.width"], "--sizes.width ... value"),
        (["--data", "text.txt", "--contxt", "8"], "no option 'contxt'; ... context?"),
        (["--data", "text.txt", "--max-steps", "9"], "warmup_steps ... max_steps (9), got 100"),
        (["--data", "text.txt", "--context", "0"], "context ... 1, got 0"),
        (["--data", "text.txt", "--validation-fraction", "1"], "validation_fraction ... 1, got 1.0"),
        (["--data", "text.txt", "--out", "short"], "--out short ... File exists"),
        (["--data", "text.txt", "--resume"], "--resume ... no run ... runs/train: ... config.toml"),
        (["wrong.toml"], "train: ... no setting 'learning_rte'; ... learning_rate?"),
        (["broken.toml"], "broken.toml ... TOML:"),
        (["typed.toml"], "seed ... integer, got '1'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_plain_line_and_leaves_nothing(capsys, here, arguments, message):
    (here / "empty").touch()
    (here / "noise").write_bytes(b"a\xff" * 100)
    (here / "short").write_text("short")
    (here / "other").write_text("Z!")
    (here / "bad.jsonl").write_text('{"text": "a"}\n{"txet": "b"}\n')
    (here / "worse.jsonl").write_text("{")
    (here / "wrong.toml").write_text("learning_rte = 1")
    (here / "broken.toml").write_text("seed = ")
    (here / "typed.toml").write_text('data = "text.txt"\nseed = "1"')
    np.save("tokens.npy", np.arange(2000, dtype=np.uint16) % 50)
    (np.arange(2000, dtype=np.uint16) % 50).tofile("tokens.bin")
    (here / "odd.bin").write_bytes(b"abc" * 101)
    before = sorted(path.name for path in here.iterdir() if path.name != "__pycache__")
    code, out, err = command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert re.search(parts(message), err)
    assert err.startswith("train: ")
    assert len(err.splitlines()) == 1
    assert sorted(path.name for path in here.iterdir() if path.name != "__pycache__") == before


@pytest.mark.parametrize(
    ("arguments", "vocabulary"),
    [
        (["--data", "records.jsonl"], None),
        (["--data", "records.jsonl", "--tokenizer", "bytes", "--prompt", "fox"], 256),
        (["--data", "text.txt", "--tokenizer", "users:Tokenizer", "--validation", "text.txt"], 128),
        (["--data", "tokens.npy", "--vocabulary", "60"], 60),
    ],
)
def test_every_kind_of_data_trains(capsys, here, arguments, vocabulary):
    (here / "records.jsonl").write_text(
        "".join(json.dumps({"text": text, "n": 1}) + "\n\n" for text in TEXT.split(". "))
    )
    np.save("tokens.npy", np.arange(2000, dtype=np.uint16) % 50)
    found = result(capsys, *QUICK, *arguments, "--max-steps", "3", "--temperature", "0", "--out", "run")
    embedding = state_of("run")[0]["params.embedding.weight"]
    assert embedding.shape[0] == (vocabulary or len(set(TEXT)))  # a record ends with a newline, not with ". "
    assert found["sample"].startswith("fox" if "--prompt" in arguments else "")
    assert np.isfinite(found["validation_loss"])


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


def test_a_disk_that_is_full_is_one_line_and_the_state_is_kept(capsys, here, monkeypatch):
    append = recording.Recorder._append

    def full(self, path, text):
        if '"step": 6' in text:
            raise OSError(28, "No space left on device", str(path))
        append(self, path, text)

    with monkeypatch.context() as patch:
        patch.setattr(recording.Recorder, "_append", full)
        code, _, err = command(capsys, *QUICK, "--max-steps", "8", "--out", "run")
    assert code == 2
    assert err == (
        "train: No space left on device: 'run/metrics.jsonl'; it was after step 6. "
        "To continue: python -m purestep train --resume --out run"
    )
    assert result(capsys, "--resume", "--out", "run")["steps"] == 8
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
    assert b"written by the model" in done.stdout.decode("ascii").encode()
    assert train.main([*whole, "--out", "whole", "--json"]) == 0
    assert same("run", "whole")
    assert (here / "run/metrics.jsonl").read_bytes() == (here / "whole/metrics.jsonl").read_bytes()


def test_json_needs_no_extra_and_help_lists_every_setting(capsys, here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setitem(sys.modules, "purestep.cli.training.showing", None)
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
