"""The start and the end of demos: refusals without side effects, interruptions, and reports."""

import argparse
import importlib
import json
import signal

import pytest
from rich.console import Console

from purestep.demos import NAMES
from purestep.demos.shared import running
from purestep.demos.shared.run_directory import RunDirectory
from purestep.demos.shared.running import StoppedError

DEMOS = {name: importlib.import_module(f"purestep.demos.{name}") for name in NAMES}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Run in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name, **given):
    return DEMOS[name].run(argparse.Namespace(**{"out": None, "resume": False, "json": True, **given}))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": 2**64}, f"--seed .*, got {2**64}"),
        ({"seed": -1}, "--seed .* 0, got -1"),
        ({"steps": 2**31}, "--steps .* 2147483647, got 2147483648"),
        ({"steps": 10**30}, "--steps .* 2147483647, got"),
        ({"steps": 0}, "--steps .* 1, got 0"),
        ({"resume": True}, "--resume .*no run .*runs/"),
    ],
)
def test_nothing_is_created_by_what_is_refused(here, name, given, message):
    with pytest.raises(ValueError, match=f"^demo: {message}"):
        run(name, **given)
    assert not list(here.iterdir())


def test_seeds_that_a_demo_multiplies_are_refused_as_well(here):
    largest = 2**64 // DEMOS["mtp"].PAIRS
    with pytest.raises(ValueError, match=f"^demo: --seed .* {largest}, got {largest}"):
        run("mtp", seed=largest)
    assert (largest - 1) * DEMOS["mtp"].PAIRS + DEMOS["mtp"].PAIRS - 1 < 2**64
    assert not list(here.iterdir())


def test_a_text_that_cannot_be_learned_claims_no_directory(here):
    (here / "short").write_text("short")
    for data in ("short", ".", "absent"):
        with pytest.raises((ValueError, OSError)):
            run("text", data=data)
    assert [file.name for file in here.iterdir()] == ["short"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("facts", [{}, [], None, 5, {"demo": "x" * 99}, {"demo": ["text"]}, "own", "other"])
def test_directories_that_hold_something_else_are_refused_untouched(here, name, facts):
    other = NAMES[NAMES.index(name) - 1]
    computed_by = running.computer()
    if facts == "own":
        facts = {"demo": name, "settings": {"steps": "many"}, "computed_by": computed_by}
    elif facts == "other":
        settings = {"steps": 3, "seed": 0, "compile": True}
        facts = {"demo": other, "settings": settings, "computed_by": computed_by}
    directory = RunDirectory("run")
    directory.start(facts)
    before = directory.run.read_bytes()
    with pytest.raises(ValueError, match=r"^demo: run(/run.json .*damaged: | holds a run )"):
        run(name, resume=True, out="run")
    assert directory.run.read_bytes() == before
    assert [file.name for file in directory.path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("name", NAMES)
def test_settings_out_of_range_in_a_run_are_its_damage(name):
    settings = {"steps": 3, "seed": -1, "compile": True}
    if name == "text":
        settings |= {"data": None, "microbatches": 1, "dtype": "float32"}
    if name == "finetune":
        settings |= {"pretrain": 3, "rank": 2}
    RunDirectory("run").start({"demo": name, "settings": settings, "computed_by": running.computer()})
    with pytest.raises(ValueError, match="^demo: run/run.json .*damaged: --seed .* 0, got -1"):
        run(name, resume=True, out="run")


def ending(work, capsys, *, as_json=False):
    console = Console(quiet=as_json, highlight=False, markup=False, width=30)
    found = running.ended(work, "toy", RunDirectory("a run"), console, as_json)
    captured = capsys.readouterr()
    return found, captured.out, captured.err


def raising(error, *, asked_first=False):
    def work():
        if asked_first:
            signal.raise_signal(signal.SIGINT)
        raise error

    return work


def test_an_interruption_says_how_to_go_on_in_a_line_to_copy(capsys):
    command = "\n  python -m purestep demo toy --resume --out 'a run'\n"
    status, said, _ = ending(raising(StoppedError("after step 3; the state is saved")), capsys)
    assert (status, said) == (130, f"interrupted after step 3; the state is saved. To continue:{command}")
    at_once = f"interrupted; the last saved state is kept. To continue from it:{command}"
    assert ending(raising(KeyboardInterrupt()), capsys)[:2] == (130, at_once)
    # Ctrl-C on a terminal also ends a compiler that MLX has started, and MLX then misses a file.
    lost = RuntimeError("Could not load C++ shared library")
    assert ending(raising(lost, asked_first=True), capsys)[:2] == (130, at_once)
    with pytest.raises(RuntimeError, match="Could not load"):
        ending(raising(lost), capsys)


def test_a_value_that_is_not_finite_ends_a_run_with_one(capsys):
    assert ending(raising(FloatingPointError("loss [red]")), capsys) == (1, "stopped: loss [red]\n", "")
    assert ending(raising(FloatingPointError("loss")), capsys, as_json=True) == (1, "", "demo: loss\n")


def test_a_report_is_a_line_a_figure_however_narrow_the_output(capsys):
    result = {"loss_by_pair": [1.0, 0.5] * 9, "out": "a/[bold]directory:smile:/" + "x" * 90}
    running.report(result, running.open_console(argparse.Namespace(json=False)), False)
    assert capsys.readouterr().out.splitlines() == [
        "",
        f"loss by pair  {', '.join(['1.0000, 0.5000'] * 9)}",
        f"out           {result['out']}",
    ]
    running.report(result, running.open_console(argparse.Namespace(json=True)), True)
    assert json.loads(capsys.readouterr().out) == result
