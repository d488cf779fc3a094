"""Runs in a terminal: tables that fit, JSON of every setting."""

import datetime
import json
import math
import sys
from pathlib import Path

import pytest

from purestep.cli.core import output
from purestep.cli.plotting import summary
from purestep.cli.plotting.charts import charts_of
from purestep.cli.plotting.reading import RunFiles
from purestep.cli.plotting.rows import rows_of
from tests.cli.hostile import Terminal


def run(name, **config):
    rows = [
        {"step": step, "loss": 1e6 if step == 90 else 2 - step / 100, **{f"n/layer.{n}": n for n in range(4)}}
        for step in range(1, 101)
    ]
    return RunFiles(name, Path(name), rows_of([json.dumps(row).encode() for row in rows]), config, [])


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
@pytest.mark.parametrize("count", [1, 3])
def test_tables_fit_a_terminal(monkeypatch, width, count):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(width))
    runs = [run(name, rate=place) for place, name in enumerate("abc"[:count])]
    summary.show(output.need_tables("plot"), charts_of(runs))
    plain = screen.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert max(map(len, plain.splitlines())) <= width
    assert plain.count("█") >= count  # the curves
    heads = next(line.strip("┃ ") for line in plain.splitlines() if "curve" in line and "by step" not in line)
    assert heads.split()[-1] == ("highest" if width >= 50 else "lowest")  # not in a line of its own
    assert ("A  a: rate=0" in plain) == (count == 3)


def test_a_spike_does_not_flatten_the_curve_in_blocks(capsys):
    summary.show(output.need_tables("plot"), charts_of([run("a")]))
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("loss")]
    assert len({*line} & set("▁▂▃▄▅▆▇█")) > 3
    assert line.endswith("1M")  # it is the highest value


def test_the_json_has_every_figure_and_setting():
    config = {"when": datetime.date(2026, 1, 2), "at": [datetime.time(1, 2), {"x": 1}], "on": True}
    found = summary.summary([run("a", **config), run("b", **{**config, "on": False})])
    output.print_json(found)
    one = found["runs"][0]
    assert one["config"] == {"when": "2026-01-02", "at": ["01:02:00", {"x": 1}], "on": True}
    assert one["figures"]["loss"] == {
        "count": 100,
        "not_finite": 0,
        "first": 1.99,
        "last": 1.0,
        "lowest": 1.0,
        "lowest_step": 100,
        "highest": 1e6,
        "highest_step": 90,
    }
    assert found["differences"] == {"on": [True, False]}


def test_values_that_are_not_finite():
    assert summary._figures([1, 2], [math.nan, math.inf])["lowest"] is None
    assert summary._figures([], [])["first"] is None
