"""The screen fits the terminal, and shows names as text."""

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from purestep.cli.plotting.reading import RunFiles
from purestep.cli.plotting.rows import rows_of
from purestep.cli.watching import showing
from tests.cli.hostile import NAMES, check


def run(count=50, **figures):
    rows = [{"step": step, "loss": 2 - step / 100, **figures} for step in range(1, count + 1)]
    return RunFiles("run", Path("run"), rows_of([json.dumps(row).encode() for row in rows]), {}, [])


def drawn(found, width=100, height=24, total=None, age=None):
    file = io.StringIO()
    Console(file=file, width=width, height=height).print(showing.status(found, total, age, width, height))
    return file.getvalue()


@pytest.mark.parametrize("width", [50, 80, 100, 200])
@pytest.mark.parametrize("height", [5, 24])
def test_the_screen_fits(width, height):
    found = drawn(run(**{f"figure_with_a_long_name_{n}": n * 1e9 for n in range(30)}), width, height, 100)
    lines = found.rstrip("\n").splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= max(height, 6)
    assert "step 50 of 100" in found
    assert "█" in found


@pytest.mark.parametrize("width", [40, 49, 60, 100])
def test_names_give_way_before_curves_and_numbers(width):
    names = ("名" * 30, "x" * 300, "a_name_of_twenty_nine_letters")
    found = drawn(run(**dict.fromkeys(names, 1234.5678)), width)
    assert found.count("1235") == len(names) * (2 if width >= 50 else 1)
    assert found.count("▁" * 10) >= len(names)
    assert max(sum(2 if each == "名" else 1 for each in line) for line in found.splitlines()) <= width


def test_a_run_without_rows_and_one_that_is_silent():
    assert "waiting for the first row\n" in drawn(run(0))
    assert "step 50, the last row is 2.1 h old" in drawn(run(), age=7500.0)
    assert drawn(run(loss=math.nan)).count("nan") == 1


def test_names_are_text():
    name = "".join(NAMES)
    found = drawn(run(**{name.replace("/", ""): 1.0, "[red]x": 2.0}), width=400)
    check(found)
    assert "[red]x" in found
    check(showing.printable(showing.line_of({"step": 1, name.replace("/", ""): 1.0})))
