"""Pictures: formats, hostile names, odd values, the same file for the same run."""

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from purestep.cli.plotting import drawing
from purestep.cli.plotting.charts import charts_of
from purestep.cli.plotting.reading import RunFiles
from purestep.cli.plotting.rows import rows_of
from tests.cli.hostile import NAMES

HARD = ("$\\frac{", "_hidden", "<svg/>&", "名前", *(name.replace("\udcff", "") for name in NAMES))


def run(name, *rows, **config):
    lines = [json.dumps(row).encode() for row in rows]
    return RunFiles(name, Path(name), rows_of(lines), config, [])


def texts(path):
    return [node.text for node in ElementTree.parse(path).iter() if node.tag.endswith("}text")]


def test_a_png_and_an_svg(tmp_path):
    rows = [
        {"step": step, "loss": 1 / (step + 1), **{f"n/l{n}": n + 1 for n in range(4)}} for step in range(60)
    ]
    charts = charts_of([run("a", *rows, rate=1), run("b", *rows, rate=2)])
    for name in ("a.png", "a.SVG", "b.svg"):
        drawing.draw(tmp_path / name, charts)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.SVG").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert {"a: rate=1", "b: rate=2", "loss", "n (a)", "l0", "l3"} <= {*texts(tmp_path / "b.svg")}
    assert len([*tmp_path.iterdir()]) == 3


@pytest.mark.parametrize("name", HARD)
def test_names_are_text_and_not_mathematics(tmp_path, name):
    row = {"step": 1, "loss": 1, name.replace("/", ""): 2, **{f"{name}/{n}": n for n in range(3)}}
    charts = charts_of([run(name, row, x=name), run("b", row, x=1)])
    drawing.draw(tmp_path / "a.svg", charts)
    shown = "\n".join(filter(None, texts(tmp_path / "a.svg")))
    assert drawing.printable(name)[:10] in shown
    drawing.draw(tmp_path / "a.png", charts)


@pytest.mark.parametrize(("name", "most"), [("x" * 5000, 36), ("名" * 40, 19)])
def test_a_long_name_beside_an_axis_ends_before_the_next_chart(tmp_path, name, most):
    drawing.draw(tmp_path / "a.svg", charts_of([run("a", {"step": 1, name: 1})]))
    [label] = [text for text in texts(tmp_path / "a.svg") if text.startswith(name[:9])]
    assert len(label) <= most
    assert label.endswith("...")


@pytest.mark.parametrize(
    "values",
    [
        [math.nan],
        [math.inf, 1.0],
        [1e308, -1e308],
        [0.0],
        [5e-324, 1e308],
        [5e-324, 1e-308],
        [1.0, math.nan, -1.0],
        [1e-300],
    ],
)
def test_odd_values_are_drawn(tmp_path, values):
    rows = [
        {"step": step, "loss": value, **{f"n/{n}": value for n in range(3)}}
        for step, value in enumerate(values)
    ]
    drawing.draw(tmp_path / "a.png", charts_of([run("a", *rows)]))


def test_runs_without_figures_give_an_empty_picture(tmp_path):
    drawing.draw(tmp_path / "a.png", charts_of([run("a", {"step": 1})]))
    drawing.draw(
        tmp_path / "b.png", charts_of([run("a", {"step": 2**53 - 1, "loss": 1, "n/a": 1}), run("b")])
    )
    rows = [{"step": 2**53 - 1, **{f"n/{n}": 1 for n in range(3)}}]
    drawing.draw(tmp_path / "c.png", charts_of([run("a", *rows)]))


def test_a_spike_does_not_bend_the_trend():
    values = [1.0] * 20
    values[10] = 1e6
    assert drawing.trend(values, 5, (0.0, 2.0)) == [1.0] * 20
    assert max(drawing.trend(values, 5, None)) > 1.0
