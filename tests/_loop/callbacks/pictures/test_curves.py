"""Drawn pictures: labels that fit, a legend for several lines, integer ticks."""

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
        curves.draw(tmp_path / "picture.png", panels, "a title")
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
