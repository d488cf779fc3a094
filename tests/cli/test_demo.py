"""The command `demo`: wrong arguments, help, and the restart with OpenBLAS."""

import importlib
import os
import re
import sys

import pytest

from purestep import __main__, __version__
from purestep._core import hardware
from purestep.cli import demo
from purestep.demos import NAMES
from tests.refusals import parts


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Run in an empty directory, without a restart for OpenBLAS."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PURESTEP_BLAS", "bundled")
    return tmp_path


def refuse(capsys, *arguments):
    """Run a command that must fail; return its error."""
    try:
        code = demo.main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    said = capsys.readouterr().err.strip()
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "--data ... 2000 characters, text ... 0"),
        (b"short", "--data ... 2000 characters, text ... 5"),
        (b"ok" * 2000 + b"\xff\xfe", "--data ... UTF-8 ... text ... byte 4000"),
    ],
)
def test_texts_that_cannot_be_learned_are_refused_before_anything_is_written(capsys, here, content, message):
    (here / "text").write_bytes(content)
    assert re.search(parts(f"demo: {message}"), refuse(capsys, "--data", "text"))
    assert [file.name for file in here.iterdir()] == ["text"]


def test_a_text_that_is_not_there_is_named(capsys):
    assert "'nowhere.txt'" in refuse(capsys, "text", "--data", "nowhere.txt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "demo: --steps ... 1, got 0"),
        (["--microbatches", "3"], "demo: --microbatches ... 16, got 3"),
        (["--microbatches", "0"], "demo: --microbatches ... 16, got 0"),
        (["--seed", "-1"], "demo: --seed ... 0, got -1"),
        (["--steps", "many"], "invalid int value: 'many'"),
        (["--dtype", "float8"], "invalid choice: 'float8'"),
        (["--step", "3"], "unrecognized arguments: --step 3"),
        (["--resume"], "demo: --resume ... no run in runs/text"),
        (["--resume", "--out", "absent"], "demo: --resume ... no run in absent"),
        (["poetry"], "no demo 'poetry'; ... text, digits, grpo, dpo, distill, mtp, finetune"),
    ],
)
def test_arguments_are_refused_before_anything_is_written(capsys, here, arguments, message):
    assert re.search(parts(message), refuse(capsys, *arguments))
    assert not list(here.iterdir())


def test_help_lists_every_demo_and_each_has_its_own(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert tuple(demo.ABOUT) == NAMES
    assert demo.main(["--help"]) == 0
    said = capsys.readouterr().out
    for name, about in demo.ABOUT.items():
        assert importlib.import_module(f"purestep.demos.{name}").__doc__.startswith(about)
        assert f"    {name:<9} {about}"[:90] in said
        assert demo.main([name, "--help"]) == 0
        own = capsys.readouterr().out
        assert own.startswith(f"usage: python -m purestep demo {name} ")
        for text in (
            about[:60],
            "--seed",
            "--resume",
            "--json",
            "Exit status: 0 the run is complete",
            "130",
            "141",
        ):
            assert text in own


def test_help_needs_no_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert demo.main(["--help"]) == 0
    assert "distill" in capsys.readouterr().out


def test_a_directory_that_cannot_be_written_is_refused(capsys, here):
    (here / "file").write_text("in the way")
    assert "file" in refuse(capsys, "--out", "file")
    assert "file" in refuse(capsys, "--out", "file/below")
    assert (here / "file").read_text() == "in the way"


def test_the_command_line_lists_its_commands(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["purestep"])
    assert __main__.main() == 0
    assert "demo" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["purestep", "dmeo"])
    assert __main__.main() == 2
    assert "there is no command 'dmeo'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["purestep", "--version"])
    assert __main__.main() == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.fixture
def restarts(monkeypatch):
    """Simulate an installed OpenBLAS that is not loaded; collect the restarts."""
    started = []
    monkeypatch.setattr(hardware, "find_openblas", lambda: "libopenblas.so.0")
    monkeypatch.setattr(hardware, "blas", lambda: "bundled")
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "purestep", "demo", "--steps", "3"])
    monkeypatch.delenv("PURESTEP_BLAS")
    monkeypatch.setenv("LD_PRELOAD", "libother.so")
    return started


def test_the_demo_starts_again_with_openblas_and_says_so(restarts, capsys):
    demo.with_openblas()
    [(program, arguments, environment)] = restarts
    assert program == sys.executable
    assert arguments[1:] == ["-m", "purestep", "demo", "--steps", "3"]
    assert environment["LD_PRELOAD"] == "libother.so libopenblas.so.0"
    assert "OpenBLAS is installed: starting again" in capsys.readouterr().err


@pytest.mark.parametrize("reason", ["kept", "loaded", "preloaded", "absent"])
def test_it_does_not_when_there_is_no_need(restarts, monkeypatch, reason):
    if reason == "kept":
        monkeypatch.setenv("PURESTEP_BLAS", "bundled")
    elif reason == "loaded":
        monkeypatch.setattr(hardware, "blas", lambda: "openblas")
    elif reason == "preloaded":
        monkeypatch.setenv("LD_PRELOAD", "libopenblas.so.0")
    else:
        monkeypatch.setattr(hardware, "find_openblas", lambda: None)
    demo.with_openblas()
    assert not restarts
