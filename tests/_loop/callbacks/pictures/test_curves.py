"""Drawn pictures: labels that fit, a legend for several lines, integer ticks."""

import math

import pytest
from matplotlib.axes import Axes

from purestep._loop.callbacks.pictures import curves
from purestep._loop.callbacks.pictures.curves import Curve, Panel


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw panels; return their axes."""
    seen = []
    inner = curves._draw_panel
    monkeypatch.setattr(curves, "_draw_panel", lambda axes, panel: (seen.append(axes), inner(axes, panel)))

    def draw(*panels) -> list[Axes]:
        curves.draw(tmp_path / "picture.png", panels, r"a $\wrong{$ title")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        return seen

    return draw


def history(count, **figures):
    return [{"step": step, **figures} for step in range(1, count + 1)]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 60])
def test_ticks_of_short_runs_are_whole(drawn, count):
    [axes] = drawn(Panel("loss", [Curve("training", history(count, loss=1.0), "loss", "C0", noisy=True)]))
    ticks = axes.get_xticks()
    assert [float(tick).is_integer() for tick in ticks] == [True] * len(ticks)
    assert len(ticks) >= 2


def test_a_legend_is_drawn_where_there_are_several_lines(drawn):
    curve = Curve("one", history(3, loss=1.0), "loss", "C0")
    several = Panel("loss", [curve, curve._replace(label="two")])
    one, two, level = drawn(Panel("loss", [curve]), several, Panel("loss", [curve], {"x": 1.0}))
    assert one.get_legend() is None
    for axes, labels in ((two, ["one", "two"]), (level, ["one", "x: 1.000"])):
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == labels


def test_a_noisy_curve_says_over_what_it_is_smoothed(drawn):
    rows = [{"step": step, "loss": float(step % 2)} for step in range(200)]
    [axes] = drawn(Panel("loss", [Curve("training", rows, "loss", "C0", noisy=True)]))
    thin, smooth = axes.get_lines()
    assert list(thin.get_ydata()) == [row["loss"] for row in rows]
    assert smooth.get_label() == "training (mean of 11 batches; thin: each)"


def test_a_band_is_shaded_around_its_line(drawn):
    rows = [
        {"step": 0, "mean": 2.0, "low": 1.0, "high": 3.0},
        {"step": 1, "mean": 1.0, "low": 0.5, "high": 1.5},
    ]
    [axes] = drawn(Panel("loss", [Curve("runs", rows, "mean", "C0", band=("low", "high"))]))
    [shade] = axes.collections
    heights = shade.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0.5, 3.0)


def test_a_spike_that_is_not_finite_is_a_gap_and_nothing_else(drawn):
    rows = [{"step": step, "loss": 1.0} for step in range(200)]
    rows[50]["loss"], rows[120]["loss"] = math.inf, math.nan
    [axes] = drawn(Panel("loss", [Curve("training", rows, "loss", "C0", noisy=True)]))
    smooth = list(axes.get_lines()[1].get_ydata())
    assert [step for step, value in enumerate(smooth) if value != 1.0] == [50, 120]


def test_a_dollar_in_a_name_is_a_dollar(drawn):
    """As a formula, these names are an error of matplotlib when the picture is written."""
    name = r"$\wrong{$"
    curve = Curve(name, history(3, loss=1.0), "loss", "C0")
    [axes] = drawn(Panel(name, [curve, curve._replace(label="two")], {name: 1.0}))
    texts = [axes.yaxis.label, *axes.get_legend().get_texts()]
    assert [text.get_text() for text in texts] == [name, name, "two", f"{name}: 1.000"]
    assert not any(text.get_parse_math() for text in texts)
