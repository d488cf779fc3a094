"""The command `train` when it is interrupted, or loses its output: one line, and no lost work."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys

import pytest

from purestep.cli import train
from purestep.cli.training import corpus, session
from tests.cli import hostile
from tests.cli.train_runs import QUICK, command, prepared, result, same

AGAIN = "To continue: python -m purestep train --resume --out run"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Run in a directory with a text and a module."""
    yield from prepared(tmp_path, monkeypatch)


def ctrl_c(*arguments):
    """Receive the signal that a terminal sends."""
    signal.raise_signal(signal.SIGINT)


def stepping(monkeypatch, *, at, act):
    """Call a function before a step of the run."""
    made = session.create_step

    def create(*arguments, **options):
        step, count = made(*arguments, **options), [0]

        def counted(state, batch):
            count[0] += 1
            if count[0] == at:
                act()
            return step(state, batch)

        return counted

    monkeypatch.setattr(session, "create_step", create)


def lost_kernel():
    """Fail as MLX does when Ctrl-C in a terminal also ends the compiler that it runs."""
    ctrl_c()
    raise RuntimeError("Could not load C++ shared library")


@pytest.mark.parametrize("there", [False, True])
def test_before_the_first_step_nothing_is_written(capsys, here, monkeypatch, there):
    if there:
        (here / "run").mkdir()
        (here / "run/mine").touch()
    before = sorted(here.rglob("*"))
    for room, name in ((corpus, "inspected"), (session, "store")):
        with monkeypatch.context() as patch:
            patch.setattr(room, name, ctrl_c)
            code, out, err = command(capsys, *QUICK, "--out", "run")
        assert (code, out) == (130, "")
        assert err == "train: interrupted before the first step. Nothing was written"
        assert sorted(here.rglob("*")) == before


def test_a_resumed_run_that_is_interrupted_before_its_first_step_is_kept(capsys, here, monkeypatch):
    result(capsys, *QUICK, "--max-steps", "4", "--lr-schedule", "constant", "--out", "run")
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "inspected", ctrl_c)
        code, _, err = command(capsys, "--resume", "--out", "run", "--max-steps", "6")
    assert (code, err) == (130, f"train: interrupted before the first step. {AGAIN}")
    assert result(capsys, "--resume", "--out", "run", "--max-steps", "6")["steps"] == 6


def test_a_compiler_that_ctrl_c_ends_is_an_interruption(capsys, here, monkeypatch):
    result(capsys, *QUICK, "--max-steps", "8", "--out", "whole")
    for at, saved in ((1, "no checkpoint is saved, so the run begins again"), (6, "the state after step")):
        with monkeypatch.context() as patch:
            stepping(patch, at=at, act=lost_kernel)
            options = [*QUICK, "--max-steps", "8"] if at == 1 else ["--resume"]
            code, _, err = command(capsys, *options, "--out", "run")
        assert code == 130
        assert saved in err
        assert err.endswith(AGAIN)
        assert len(err.splitlines()) == 1
    assert result(capsys, "--resume", "--out", "run")["steps"] == 8
    assert same("whole", "run")


def test_the_second_ctrl_c_stops_at_once_and_shows_the_cursor(here, monkeypatch, capsys):
    for name, value in (("COLUMNS", "100"), ("LINES", "20"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    screen, errors = hostile.Terminal(), io.StringIO()
    with monkeypatch.context() as patch, contextlib.redirect_stderr(errors):
        patch.setattr(sys, "stdout", screen)
        stepping(patch, at=7, act=lambda: (ctrl_c(), ctrl_c()))
        assert train.main([*QUICK, "--max-steps", "20", "--out", "run"]) == 130
    assert errors.getvalue() == f"train: interrupted; the state after step 4 is saved. {AGAIN}\n"
    shown = screen.getvalue()
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n")
    assert max(map(len, plain.splitlines())) <= 100
    assert result(capsys, "--resume", "--out", "run")["steps"] == 20


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
def test_a_closed_pipe_ends_no_training(here):
    command_ = [sys.executable, "-m", "purestep", "train", *QUICK, "--max-steps", "8", "--out", "run"]
    with subprocess.Popen(command_, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"tokens to learn" in process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 141
    assert said == ("train: warning: progress: the output cannot be written, training goes on: Broken pipe\n")
    assert (here / "run/checkpoints/step_00000008").exists()
    with open("/dev/full", "w") as full:
        done = subprocess.run([*command_[:-1], "other"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr == b"train: standard output cannot be written: No space left on device\n"


def test_a_kernel_that_cannot_be_compiled_and_too_little_memory_are_one_line(capsys, here, monkeypatch):
    for number, (error, message) in enumerate(
        (
            (
                "[Compile::eval_cpu] Failed to compile function " + "x" * 900,
                "--no-compile-step compiles none",
            ),
            ("[malloc] Unable to allocate 8 bytes.", "A smaller --batch-size or --context needs less"),
        )
    ):

        def fail(said=error):
            raise RuntimeError(said)

        with monkeypatch.context() as patch:
            stepping(patch, at=6, act=fail)
            code, _, err = command(capsys, *QUICK, "--max-steps", "8", "--out", f"run{number}")
        assert code == 2
        assert message in err
        assert err.endswith(f"the state after step 5 is saved. {AGAIN}{number}")
        assert len(err) < 600
