"""Which charts there are, thinned curves, heat maps, labels and sparklines."""

import json
import math

import pytest

from purestep.cli.plotting import charts
from purestep.cli.plotting.reading import RunFiles
from purestep.cli.plotting.rows import rows_of
from purestep.cli.plotting.sparklines import sparkline


def run(name, *rows, **config):
    lines = [json.dumps(row).encode() for row in rows]
    return RunFiles(name, name, rows_of(lines), config, [])


def test_the_known_figures_come_first_and_counts_are_no_charts():
    row = {
        "accuracy": 1,
        "grad_norm": 1,
        "steps_per_second": 1,
        "tokens_per_second": 2,
        "peak_memory": 1,
        "active_memory": 1,
        "eval_loss": 1,
        "eval_weight": 1,
        "learning_rate": 1,
        "loss": 1,
        "tokens": 1,
        "seconds": 1,
    }
    found = charts.charts_of([run("a", {"step": 1, **row})])
    names = {chart.title: [line.figure for line in chart.lines] for chart in found.curves}
    assert list(names) == ["loss", "learning_rate", "grad_norm", "tokens_per_second", "memory", "accuracy"]
    assert names["loss"] == ["loss", "eval_loss"]
    assert names["memory"] == ["peak_memory", "active_memory"]


def test_figures_by_layer_are_heat_maps_in_natural_order():
    rows = [
        {"step": step, **{f"norms/layers.{n}": n + step for n in (10, 9, 1)}, "two/a": 1, "two/b": 2}
        for step in (1, 2)
    ]
    found = charts.charts_of([run("a", *rows)])
    [heat] = found.heats
    assert (heat.title, heat.layers) == ("norms", ["layers.1", "layers.9", "layers.10"])
    assert (heat.steps, heat.values) == ([1, 2], [[2, 3], [10, 11], [11, 12]])
    assert [chart.title for chart in found.curves] == ["two/a", "two/b"]  # two are curves


def test_figures_that_share_a_prefix_and_no_scale_are_curves():
    names = ["train/loss", "train/accuracy", "train/perplexity"]
    found = charts.charts_of([run("a", {"step": 1, **dict.fromkeys(names, 1), "norms/a.w": 1, "norms/b": 1})])
    assert (found.heats, {*names} <= {chart.title for chart in found.curves}) == ([], True)


def test_rows_without_a_figure_are_a_note():
    assert charts.charts_of([run("a", {"step": 1, "tokens": 2})]).notes == [
        "there is nothing to draw: the rows have only steps and counts"
    ]


def test_a_long_heat_map_has_at_most_400_columns():
    rows = [{"step": step, "n/0": 1, "n/1": 1, "n/2": 1} for step in range(3000)]
    [heat] = charts.charts_of([run("a", *rows)]).heats
    assert len(heat.steps) == len(heat.values[0]) <= 400
    assert heat.steps[-1] >= 2990


def test_thinning_keeps_the_ends_and_every_spike():
    steps, values = list(range(100_000)), [0.0] * 100_000
    values[54_321] = 9.0
    values[77] = math.nan
    found = charts.thinned(steps, values, 500)
    assert len(found[0]) <= 500
    assert (found[0][0], found[0][-1], max(found[1])) == (0, 99_999, 9.0)
    assert charts.thinned([1, 2], [math.nan, math.inf], 500) == ([1, 2], [math.nan, math.inf])
    assert len(charts.thinned(steps, [math.nan] * 100_000, 500)[0]) <= 500


def test_too_many_figures_are_a_note():
    found = charts.charts_of([run("a", {"step": 1, **{f"f{n}": 1 for n in range(50)}})])
    assert len(found.curves) == charts.MOST_CHARTS
    assert found.notes == ["10 figures after the first 40 were left out: f40, ..."]


def test_labels_name_the_settings_that_differ():
    row = {"step": 1, "loss": 1}
    runs = [run("a", row, rate=0.1, seed=1, text="x" * 99), run("b", row, rate=0.2, seed=1), run("c", row)]
    assert charts.labels_of(runs) == [f"a: rate=0.1, text={'x' * 40}...", "b: rate=0.2, text=-", "c"]
    assert charts.labels_of(runs[:1]) == ["a"]
    many = [run(name, row, **{f"s{n}": name for n in range(9)}) for name in "ab"]
    assert charts.labels_of(many)[0] == "a: s0=a, s1=a, s2=a, s3=a, ..."


def test_names_are_sorted_by_their_numbers():
    names = [f"l{'1' * 5000}", "l10", "l9.x", "l9", "l²", "1l", "l", "l007"]
    assert sorted(names, key=charts.natural) == ["1l", "l", "l007", "l9", "l9.x", "l10", names[0], "l²"]


@pytest.mark.parametrize(
    ("values", "width", "text"),
    [
        ([], 5, ""),
        ([1.0], 5, "▁"),
        ([1.0, 1.0], 5, "▁▁"),
        ([0.0, 7.0], 9, "▁█"),
        ([math.nan, math.inf], 5, "  "),
        ([0.0, 0.0, 7.0, 7.0], 2, "▁█"),
        ([-1.7e308, 1.7e308], 2, "▁█"),
        ([1.7e308, 1.7e308, 0.0, 0.0], 2, "█▁"),
        ([5e-324, 0.0], 2, "█▁"),
    ],
)
def test_sparklines(values, width, text):
    assert sparkline(values, width) == text
    assert sparkline(values, width, ascii_only=True).isascii()
