"""The picture of a profile: its pixels show the parts."""

import importlib

import numpy as np
import pytest
from matplotlib.image import imread

import purestep as ps
from purestep._loop.profiling.clock import StepTimes
from purestep._loop.profiling.drawing import draw
from tests._loop.workload import STEP, At, start

PURPLE = (0x8E, 0x4F, 0xA8)  # evaluation


def area(path, color):
    """Return the share of the left half of a picture that has a color."""
    pixels = np.asarray(imread(path))[:, : imread(path).shape[1] // 2, :3]
    return float((np.abs(pixels * 255 - np.array(color)) < 2).all(axis=-1).mean())


def rows_of(evaluation):
    parts = {"wait": 0.1, "mine": 0.1, "evaluation": evaluation}
    return [StepTimes(number, 0.2 + evaluation, parts) for number in range(4, 14)]


def test_a_part_takes_its_share_of_the_bars(tmp_path):
    draw(tmp_path / "small.png", rows_of(0.1))
    draw(tmp_path / "large.png", rows_of(0.8))
    small, large = area(tmp_path / "small.png", PURPLE), area(tmp_path / "large.png", PURPLE)
    # A third and four fifths of bars that are equally high.
    assert large / small == pytest.approx(0.8 * 3, rel=0.1)


def test_a_profile_draws_itself_and_refuses_what_it_cannot(tmp_path, monkeypatch):
    with ps.profile(steps=3) as profile:
        with pytest.raises(ValueError, match=r"Profile\.plot: at least one step must be measured"):
            profile.plot(tmp_path / "a.png")
        ps.fit(STEP, start(), At(), steps=8)
    profile.plot(tmp_path / "deep" / "a.png")
    assert imread(tmp_path / "deep" / "a.png").shape[1] > 1000
    with pytest.raises(ValueError, match=r"path must end in \.png"):
        profile.plot(tmp_path / "a.pdf")

    def missing(name):
        raise ModuleNotFoundError("no", name="matplotlib")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"Profile\.plot: matplotlib is not installed; pip install"):
        profile.plot(tmp_path / "a.png")


def test_names_of_parts_are_plain_text_of_bounded_length(tmp_path):
    """A dollar begins a formula in matplotlib, and a broken formula ends the drawing."""
    names = ["$\\frac$", "x" * 200]
    rows = [StepTimes(number, 1.0, dict.fromkeys(names, 0.5)) for number in (1, 2)]
    draw(tmp_path / "odd.png", rows)
    bars = (np.asarray(imread(tmp_path / "odd.png"))[..., :3].std(axis=-1) > 0.1).any(axis=0)
    assert bars[: bars.size // 2].mean() > 0.5  # the long name leaves room for the bars


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", " ", "", "step", 3])
def test_a_name_that_would_break_the_table_is_refused(name):
    with ps.profile(steps=1) as profile, pytest.raises(ValueError, match=r"Profile\.part: name must be"):
        profile.part(name)
