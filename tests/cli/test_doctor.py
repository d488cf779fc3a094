"""`python -m purestep doctor`: sound and broken machines, exit statuses, JSON, terminals."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import purestep as ps
from purestep import __main__
from purestep.cli import doctor
from purestep.cli.core import output
from purestep.cli.doctoring import machine
from purestep.cli.doctoring.finding import Finding, checked
from tests.cli.hostile import NAMES, Terminal, check

SOURCE = {"PYTHONPATH": str(Path(ps.__file__).parents[1])}


def run(directory, *arguments, limit=None, **environment):
    """Run the command in a process of its own; return its status and its findings by name."""
    done = subprocess.run(
        [sys.executable, "-m", "purestep", "doctor", "--json", *arguments],
        env={**os.environ, **SOURCE, **environment},
        cwd=directory,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    answer = json.loads(done.stdout)
    return done.returncode, answer, {finding["name"]: finding for finding in answer["checks"]}


@pytest.fixture
def quick(monkeypatch):
    """Only the checks that are given, so that a test takes no seconds."""

    def replace(*found):
        monkeypatch.setattr(
            doctor, "checks", lambda place: [(each.name, lambda each=each: each) for each in found]
        )

    return replace


def test_a_sound_machine_passes_every_check_within_20_seconds(tmp_path):
    code, answer, found = run(tmp_path)
    names = "versions device memory blas compile matmul copy disk distributed preflight".split()
    assert [name for name in found if name != "cuda graphs"] == names
    assert (code, answer["ok"], answer["wrong"]) == (0, True, [])
    assert found["matmul"]["figures"]["float32_flops"] > 1e8
    assert found["disk"]["figures"]["bytes_per_second"] > 0
    assert found["compile"]["figures"]["calls"] == 1
    assert not list(tmp_path.iterdir())  # neither a kernel nor a file stays


@pytest.mark.skipif(sys.platform != "linux", reason="MLX needs g++ only on Linux")
def test_broken_environments_are_named_with_a_remedy(tmp_path):
    """One process has several faults: each is a line of its own."""
    empty = tmp_path / "bin"
    empty.mkdir()
    code, answer, found = run(tmp_path, "--dir", "absent", PATH=str(empty), TMPDIR=str(tmp_path))
    assert code == 1
    assert answer["wrong"] == ["compile", "disk"]
    assert "does not compile" in found["compile"]["said"]
    assert found["compile"]["remedy"].startswith("Install the C++ compiler g++")
    assert "No such file or directory" in found["disk"]["said"]
    assert found["preflight"]["state"] == "ok"


@pytest.mark.skipif(sys.platform != "linux", reason="MLX needs g++ only on Linux")
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("", "mx.compile does not compile here"),
        ('case "$*" in *-version*|-v) exit 0;; esac', "a fused kernel could not be built"),
    ],
)
def test_a_compiler_that_fails_and_a_full_disk(tmp_path, script, said):
    (tmp_path / "g++").write_text(f"#!/bin/sh\n{script}\necho broken >&2\nexit 1\n")
    (tmp_path / "g++").chmod(0o755)

    def quota():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    code, answer, found = run(
        tmp_path, limit=quota, PATH=f"{tmp_path}:{os.environ['PATH']}", TMPDIR=str(tmp_path)
    )
    assert (code, answer["wrong"]) == (1, ["compile", "disk"])
    assert said in found["compile"]["said"]
    assert "g++ compiles a small program" in found["compile"]["remedy"]
    assert "File too large" in found["disk"]["said"]
    assert "quota" in found["disk"]["remedy"]
    assert [path.name for path in tmp_path.iterdir()] == ["g++"]


def test_a_temporary_directory_that_is_absent_and_compilation_that_is_off(tmp_path):
    _, answer, found = run(tmp_path, TMPDIR=str(tmp_path / "absent"))
    assert "compile" in answer["wrong"]
    assert "cannot be written: No such file or directory" in found["compile"]["said"]
    assert "Set TMPDIR" in found["compile"]["remedy"]
    _, answer, found = run(tmp_path, MLX_DISABLE_COMPILE="1")
    assert answer["wrong"] == ["compile"]
    assert "MLX_DISABLE_COMPILE" in found["compile"]["remedy"]


def test_advice_alone_is_no_failure(quick, capsys):
    quick(Finding("blas", "advice", "it is slow", "Load another"), Finding("copy", "ok", "fast"))
    assert doctor.main([]) == 0
    assert capsys.readouterr().out == (
        "advice  blas         it is slow\nok      copy         fast\n\nadvice: blas. Load another.\n"
    )
    assert doctor.main(["--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ok"], answer["wrong"], answer["advice"]) == (True, [], ["blas"])


def test_what_is_wrong_comes_first_in_the_summary(quick, capsys):
    quick(Finding("a", "advice", "x", "Do x"), Finding("b", "wrong", "y", "Do y"))
    assert doctor.main([]) == 1
    assert capsys.readouterr().out.endswith("\n\nwrong: b. Do y.\nadvice: a. Do x.\n")
    quick(Finding("a", "ok", "x"))
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.endswith("\n\nNothing is wrong.\n")


def test_a_check_that_raises_is_a_line(monkeypatch, capsys):
    def broken():
        raise RuntimeError("\x1b[31mred\n" + "x" * 1000)

    monkeypatch.setattr(doctor, "checks", lambda place: [("memory", broken), ("copy", broken)])
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    check(said)
    assert said.count("this check failed: RuntimeError: \\x1b[31mred") == 2
    assert max(map(len, said.splitlines())) < 400


def test_a_check_that_does_not_apply_is_left_out():
    assert checked("cuda graphs", lambda: None) is None


@pytest.mark.parametrize("width", [30, 40, 44, 60, 80, 100])
def test_lines_fit_a_terminal(quick, monkeypatch, width):
    quick(
        Finding("versions", "ok", "words wordwordwordwo " * 20),
        Finding("disk", "wrong", NAMES[0], "Do it " * 40),
    )
    screen = Terminal()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stdout", screen)
    assert doctor.main([]) == 1
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "\x1b" not in screen.getvalue()
    wide = width >= 45  # a narrow terminal shows the answer below the name
    assert lines[0].startswith("ok      versions     words word" if wide else "ok versions")
    answer = [line for line in lines if line.lstrip().startswith("word") and not line.startswith("wrong")]
    assert all(line.startswith(" " * (21 if wide else 2) + "word") for line in answer)


def test_without_rich_the_command_names_the_extra(monkeypatch, capsys):
    def missing(name):
        raise ModuleNotFoundError(name="rich")

    monkeypatch.setattr(output.importlib, "import_module", missing)
    assert doctor.main([]) == 2
    assert "pip install 'purestep[cli]', or use --json" in capsys.readouterr().err


def test_wrong_arguments_and_interrupts(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["purestep", "doctor", "--fast"])
    assert __main__.main() == 2
    check(capsys.readouterr().err)

    def interrupted(place):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "checks", interrupted)
    assert doctor.main(["--json"]) == 130
    assert capsys.readouterr().err == "doctor: interrupted\n"


def test_a_name_of_the_machine_is_escaped(monkeypatch, capsys):
    monkeypatch.setattr(machine.platform, "machine", lambda: NAMES[1])
    monkeypatch.setattr(doctor, "checks", lambda place: [("versions", machine.versions)])
    assert doctor.main([]) == 0
    check(capsys.readouterr().out)
