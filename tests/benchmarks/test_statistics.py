"""Spreads, ratios and their texts, against numpy and by hand."""

import numpy
import pytest

from benchmarks.harness import Spread, fastest, milliseconds, ratio, timed


@pytest.mark.parametrize("values", [[3.0], [1.0, 4.0], [5.0, 1.0, 2.0], [0.1, 7.0, 2.0, 3.0, 9.0, 4.0]])
def test_a_spread_is_the_median_and_the_quartiles_of_numpy(values):
    assert Spread.of(values) == pytest.approx(numpy.quantile(values, [0.5, 0.25, 0.75]))


def test_ratios_are_of_values_side_by_side_and_not_of_medians():
    assert Spread.of_ratios([2.0, 3.0, 40.0], [1.0, 3.0, 10.0]).median == 2.0  # medians: 3 / 3
    with pytest.raises(ValueError, match="zip"):
        Spread.of_ratios([1.0], [1.0, 2.0])


def test_a_spread_is_written_in_the_unit_and_digits_asked_for():
    assert Spread(0.0125, 0.01, 0.02).show(1, 1e3) == "12.5 (10.0-20.0)"


def test_fastest_is_the_mean_of_the_smallest_tenth():
    assert fastest([5.0, 3.0, 4.0]) == 3.0
    assert fastest([float(x) for x in range(20, 0, -1)]) == 1.5


def test_a_contestant_without_turns_is_a_dash():
    assert (milliseconds([]), ratio([], [1.0]), ratio([1.0], [])) == ("-", "-", "-")
    assert milliseconds([0.25]) == "250.0 (250.0-250.0)"
    assert timed({"a": {"seconds": [1.0]}, "b": {"seconds": []}, "c": {}}) == {"a": [1.0]}
