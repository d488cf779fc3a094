"""`python -m purestep watch`: pipes, terminals, JSON, the ends of a run."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import purestep as ps
from purestep.cli import watch
from tests.cli.hostile import NAMES, Terminal, check

SOURCE = {"PYTHONPATH": str(Path(ps.__file__).parents[1])}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def row(step, **figures):
    return json.dumps({"step": step, "loss": 1 / step, **figures}) + "\n"


def begin(steps=4, total=4, **figures):
    Path("run").mkdir(exist_ok=True)
    Path("run/config.toml").write_text(f"max_steps = {total}")
    Path("run/metrics.jsonl").write_text("".join(row(step, **figures) for step in range(1, steps + 1)))


def call(capsys, *arguments):
    code = watch.main(arguments)
    said = capsys.readouterr()
    check(said.out + said.err)
    return code, said.out, said.err


def test_a_run_that_made_its_steps_ends_the_command(capsys):
    begin(12, 12)
    code, out, err = call(capsys, "run")
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"step {n}  loss {1 / n:.4g}" for n in range(3, 13)]  # the last ten


def test_a_pipe_gets_a_line_for_each_row_that_is_added(capsys):
    begin(1)

    def write():
        for step in (2, 3):
            time.sleep(0.05)
            with open("run/metrics.jsonl", "a") as file:
                file.write(row(step))
        time.sleep(0.05)
        Path("new").write_text(row(1) + row(2))  # resumed after step 2
        os.replace("new", "run/metrics.jsonl")
        time.sleep(0.05)
        with open("run/metrics.jsonl", "a") as file:
            file.write(row(3) + row(4))

    thread = threading.Thread(target=write)
    thread.start()
    code, out, _ = call(capsys, "run", "--every", "0.01")
    thread.join()
    assert code == 0
    assert [line.partition("  ")[0] for line in out.splitlines()] == [
        "step 1",
        "step 2",
        "step 3",
        "the file was written anew, its last row is of step 2",
        "step 3",
        "step 4",
    ]


def test_a_run_that_does_not_exist_yet_is_waited_for(capsys):
    thread = threading.Timer(0.1, begin)
    thread.start()
    code, out, _ = call(capsys, "run", "--every", "0.01")
    thread.join()
    assert (code, len(out.splitlines())) == (0, 4)


def test_json_is_the_run_as_it_is_now(capsys):
    begin(3)
    code, out, _ = call(capsys, "run", "--json")
    found = json.loads(out)
    assert (code, found["step"], found["max_steps"], found["finished"]) == (0, 3, 4, False)
    assert found["figures"]["loss"]["last"] == pytest.approx(1 / 3)
    assert found["age_seconds"] >= 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent", "--once"], "watch: there is no absent"),
        (["absent", "--json"], "watch: there is no absent"),
        (["."], None),
        (["run", "--every", "0"], "watch: --every must be at least 0.01, got 0.0"),
        (["run", "--every", "nan"], "watch: --every must be finite, got nan"),
    ],
)
def test_refusals_are_one_line(capsys, arguments, said):
    if said is None:
        arguments, said = [".", "--once"], "watch: . must hold a metrics.jsonl"
    code, out, err = call(capsys, *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(said)


def test_hostile_runs_are_escaped(capsys, monkeypatch):
    begin(4, 4, **dict.fromkeys(NAMES[:3], 1))
    assert call(capsys, "run")[0] == 0
    assert call(capsys, "run", "--json")[0] == 0
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    assert watch.main(["run"]) == 0
    plain = screen.getvalue()
    assert "\x1b[31m" not in plain
    assert "\x1b]" not in plain
    assert r"\x1b[2J" in plain


def test_a_terminal_shows_the_run_and_ctrl_c_ends_it():
    begin(3, 4)
    outer, inner = pty.openpty()
    command = [sys.executable, "-m", "purestep", "watch", "run", "--every", "0.05"]
    environment = {**os.environ, **SOURCE, "COLUMNS": "100", "LINES": "30", "TERM": "xterm"}
    said = b""
    with subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment) as process:
        os.close(inner)
        while b"step 3 of 4" not in said:
            said += os.read(outer, 4096)
        process.send_signal(signal.SIGINT)
        while chunk := _read(outer):
            said += chunk
    os.close(outer)
    assert process.returncode == 130
    assert b"\x1b[?25h" in said  # the cursor is shown again
    assert said.rstrip().endswith(b"watch: interrupted")
    assert b"Traceback" not in said


def _read(descriptor):
    try:
        return os.read(descriptor, 4096)
    except OSError:  # a terminal without writers
        return b""


def test_without_rich_the_command_names_the_extra(capsys, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name="rich")

    monkeypatch.setattr(watch.importlib, "import_module", missing)
    begin()
    code, _, err = call(capsys, "run")
    assert (code, "pip install 'purestep[cli]', or use --json" in err) == (2, True)
    assert call(capsys, "run", "--json")[0] == 0
