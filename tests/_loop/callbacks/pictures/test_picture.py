"""Moving averages, integer ticks, bands and ranges of pictures."""

import itertools
import math

import pytest

from purestep._loop.callbacks.pictures.picture import (
    MOST_TICKS,
    band,
    smoothed,
    smoothing_reach,
    whole_ticks,
    without_spikes,
    zoomed,
)


def test_a_straight_line_is_left_as_it_is_and_a_step_is_not_delayed():
    line = [0.5 * number for number in range(30)]
    assert smoothed(line, 7) == pytest.approx(line)
    edge = smoothed([0.0] * 20 + [1.0] * 20, 5)
    # The middle of the rise is where the values rise: a running mean would be late.
    assert (edge[19] + edge[20]) / 2 == pytest.approx(0.5)
    assert edge[14] == 0
    assert edge[25] == 1


def test_smoothing_commutes_with_reading_backwards():
    values = [number * number % 17 / 3 for number in range(40)]
    assert smoothed(values[::-1], 6) == pytest.approx(smoothed(values, 6)[::-1])
    assert smoothed(values, 0) == values
    assert smoothed([], 3) == []


def test_a_window_never_reaches_past_an_end():
    for count in range(200):
        assert 2 * smoothing_reach(count) < max(count, 1)


@pytest.mark.parametrize("last", [*range(1, 130), 480, 600, 800, 999, 10_000, 2**31 - 1])
def test_ticks_are_few_whole_and_within(last):
    ticks = whole_ticks(last)
    assert all(type(tick) is int for tick in ticks)
    assert ticks[0] == 0
    assert 2 <= len(ticks) <= MOST_TICKS
    assert last / 2 < ticks[-1] <= last or last < 3
    assert len({after - before for before, after in itertools.pairwise(ticks)}) == 1


def test_a_band_covers_the_steps_that_all_runs_have():
    runs = [
        [{"step": 0, "loss": 4.0}, {"step": 1, "other": 1.0}, {"step": 2, "loss": 1.0}],
        [{"step": 0, "loss": 2.0}, {"step": 2, "loss": 3.0}, {"step": 3, "loss": 9.0}],
    ]
    assert band(runs, "loss") == [
        {"step": 0, "mean": 3.0, "low": 2.0, "high": 4.0},
        {"step": 2, "mean": 2.0, "low": 1.0, "high": 3.0},
    ]
    assert band([], "loss") == []


def test_a_range_leaves_out_the_start_and_holds_the_levels():
    low, high = zoomed([[9.0, 5.0, 1.0, 1.2], [8.0, 4.0, 1.1, 1.4]], [0.9]) or (0.0, 0.0)
    assert 0.8 < low < 0.9
    assert 1.4 < high < 1.5
    assert zoomed([[2.0]]) == (1.9, 2.1)
    assert zoomed([]) is None


def test_a_range_leaves_out_spikes_on_either_side_but_not_a_decay():
    decay = [2 + 8 * math.exp(-number / 40) for number in range(300)]
    assert without_spikes(decay) is None
    assert without_spikes([*decay, math.nan, math.inf]) is None
    low, high = without_spikes([*decay, 1e6, -1e6]) or (0.0, 0.0)
    assert -10 < low < 2
    assert 10 <= high < 20
    assert without_spikes([]) is None
    assert without_spikes([1.0]) is None
