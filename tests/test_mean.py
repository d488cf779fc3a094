"""Means that merge exactly."""

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from purestep import Mean


@given(st.lists(st.lists(st.integers(-50, 50), min_size=1, max_size=5), min_size=1, max_size=4))
def test_merging_the_parts_gives_the_mean_of_the_whole(parts):
    whole = [x for part in parts for x in part]
    merged = Mean.merge(*(Mean.of(mx.array(part, mx.float32)) for part in parts))
    assert merged.weight.item() == len(whole)
    assert merged.value.item() == pytest.approx(sum(whole) / len(whole), rel=1e-6, abs=1e-6)


def test_a_value_without_weight_is_left_out_even_when_it_is_not_finite():
    mean = Mean.of(mx.array([1.0, mx.nan, mx.inf]), mx.array([2.0, 0.0, 0.0]))
    assert (mean.total.item(), mean.weight.item()) == (2.0, 2.0)


def test_weights_broadcast_and_count_every_value():
    assert Mean.of(mx.ones((2, 3)), mx.array([[1.0], [0.0]])).weight.item() == 3.0


def test_sums_are_float32_for_low_precision_values():
    mean = Mean.of(mx.ones((5000,), mx.bfloat16))
    assert mean.total.dtype == mean.weight.dtype == mx.float32
    assert mean.value.item() == 1.0


def test_no_weight_at_all_is_zero_with_a_zero_gradient():
    def value(x):
        return Mean.of(x, mx.zeros(3)).value

    value, gradient = mx.value_and_grad(value)(mx.array([1.0, mx.nan, 3.0]))
    assert value.item() == 0.0
    assert gradient.tolist() == [0.0, 0.0, 0.0]


def test_a_mean_of_very_many_values_keeps_its_digits():
    values = mx.full((2**24,), 0.1)
    for mean in (Mean.of(values), Mean.of(values.reshape(2, -1), mx.full((2, 1), 0.3))):
        assert mean.value.item() == pytest.approx(0.1, rel=1e-6)
        assert mean.weight.item() == pytest.approx(2**24 * (0.3 if mean.weight.item() < 1e7 else 1), rel=1e-6)
