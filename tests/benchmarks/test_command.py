"""`python -m benchmarks`: exit codes, partial results, records that are shown again."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks.harness import ContestantError, StoppedError, records
from tests.benchmarks.contestants import FACTS, fake, whole


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a fake benchmark; its records go to the temporary folder."""
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setitem(command.NAMES, "fake", "a benchmark")

    def run(measure, *arguments, missed=()):
        monkeypatch.setitem(sys.modules, "benchmarks.fake", fake(measure, missed))
        return command.main(["fake", *arguments])

    return run


def stopped(options, record, limit):
    record.keep(facts=dict(FACTS), seconds={"a": [1.0]})
    raise StoppedError("limit of 5 s")


def test_a_run_prints_its_table_and_saves_json_text_and_picture(run, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    assert run(whole, "--rounds", "1") == 0
    assert not list(tmp_path.iterdir())
    assert run(whole, "--rounds", "3", "--save") == 0
    assert capsys.readouterr().out == (
        "seconds {'a': [1.0], 'b': [2.0]}\nseconds {'a': [1.0, 1.0, 1.0], 'b': [2.0, 2.0, 2.0]}\n"
    )
    assert {path.name for path in tmp_path.iterdir()} == {f"fake-cpu.{end}" for end in ("json", "txt", "png")}
    found = json.loads((tmp_path / "fake-cpu.json").read_text())
    assert found["options"] == {"rounds": 3}
    assert found["facts"]["load after"] >= 0


def test_show_prints_the_same_table_and_draws_the_same_picture_again(run, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    run(whole, "--save")
    first, picture = capsys.readouterr().out, tmp_path / "fake-cpu.png"
    before = picture.read_bytes()
    picture.unlink()
    assert command.main(["show"]) == command.main(["show", str(tmp_path / "fake-cpu.json")]) == 0
    assert capsys.readouterr().out == first * 2
    assert picture.read_bytes() == before
    assert command.main(["show", str(tmp_path / "absent.json")]) == 2
    assert "show: FILE must be a record of a benchmark" in capsys.readouterr().err


def test_a_run_that_the_limit_ends_prints_and_saves_what_it_measured(run, capsys, tmp_path):
    assert run(stopped, "--save") == 0
    printed = "seconds {'a': [1.0]}\n\nstopped: limit of 5 s\n"
    assert capsys.readouterr().out == printed
    assert (tmp_path / "fake-cpu.txt").read_text() == printed
    assert run(stopped, "--json") == 0
    assert json.loads(capsys.readouterr().out)["stopped"] == "limit of 5 s"


def test_a_missed_target_and_contestants_that_disagree_are_errors(run, capsys):
    def disagrees(options, record, limit):
        whole(options, record, limit)
        raise ContestantError("a and b disagree")

    assert run(whole, missed=["b"]) == 1
    assert run(disagrees) == 1
    assert capsys.readouterr().err == "fake: a and b disagree\n"


def test_a_run_that_ends_before_anything_was_measured_says_so(run, capsys):
    def early(options, record, limit):
        raise StoppedError("terminated")

    assert run(early) == 1
    assert "stopped before anything was measured: terminated" in capsys.readouterr().err


def test_the_limit_is_250_seconds_unless_another_is_given_and_0_is_none(run):
    left = []

    def measure(options, record, limit):
        left.append(limit.left())
        whole(options, record, limit)

    for arguments in ((), ("--limit", "1000"), ("--limit", "0")):
        run(measure, *arguments)
    assert 230 < left[0] < 250 < 900 < left[1] < 1000
    assert left[2] == float("inf")


def test_a_run_that_is_terminated_prints_its_rounds_and_exits_with_143(tmp_path):
    code = """
        import sys, time
        from benchmarks import __main__ as command
        from benchmarks.harness import Worker
        from tests.benchmarks.contestants import Sleeper, fake, whole

        def measure(options, record, limit):
            whole(options, record, limit)
            with Worker("sleeper", Sleeper) as worker:
                print("measuring", file=sys.stderr, flush=True)
                worker.call("sleeps", 60)

        if __name__ == "__main__":
            command.NAMES["fake"] = "a benchmark"
            sys.modules["benchmarks.fake"] = fake(measure)
            sys.exit(command.main(["fake"]))
    """
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(code))
    root = Path(__file__).parents[2]
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(program)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline() == "measuring\n"
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "")
    assert printed == "seconds {'a': [1.0, 1.0], 'b': [2.0, 2.0]}\n\nstopped: terminated\n"
    assert time.monotonic() - begun < 50


def test_the_help_names_every_benchmark_and_an_unknown_one_is_refused(capsys):
    assert command.main([]) == command.main(["--help"]) == 0
    assert command.main(["linear"]) == 2
    printed = capsys.readouterr().out
    assert all(printed.count(f"\n  {name} ") == 3 for name in (*command.NAMES, "show"))
