"""Means that merge exactly."""

import operator

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from purestep import Mean, MeanSum


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
    value, gradient = mx.value_and_grad(lambda x: Mean.of(x, mx.zeros(3)).value)(mx.array([1.0, mx.nan, 3.0]))
    assert value.item() == 0.0
    assert gradient.tolist() == [0.0, 0.0, 0.0]


def test_a_mean_of_very_many_values_keeps_its_digits():
    values = mx.full((2**24,), 0.1)
    for mean in (Mean.of(values), Mean.of(values.reshape(2, -1), mx.full((2, 1), 0.3))):
        assert mean.value.item() == pytest.approx(0.1, rel=1e-6)
        assert mean.weight.item() == pytest.approx(2**24 * (0.3 if mean.weight.item() < 1e7 else 1), rel=1e-6)


A, B = Mean(mx.array(6.0), mx.array(3.0)), Mean(mx.array(8.0), mx.array(2.0))


@pytest.mark.parametrize(
    ("mean", "value"),
    [
        (2 * A, 4),
        (A * np.float32(0.5), 1),
        (np.float64(3) * A, 6),
        (A / np.int64(4), 0.5),
        (A * mx.array(2), 4),
        (A / mx.array(2.0), 1),
        (-A, -2),
        (A + B, 6),
        (A - B, -2),
        (A + 1, 3),
        (1 - A, -1),
        (A + mx.array(0.5), 2.5),
        (A - np.float32(0.5), 1.5),
        (sum([A, B, A]), 8),
        (2 * (A + 0.5 * B) / 4 - (B - 1), -1),
        (A + (B + A), 8),
    ],
)
def test_arithmetic_is_that_of_the_values(mean, value):
    assert mean.value.item() == pytest.approx(value)
    parts = Mean.merge(mean, mean, mean)
    assert type(parts) is type(mean)
    assert parts.value.item() == pytest.approx(value)


def test_means_of_one_weight_are_one_term():
    weights = mx.array(3.0)
    both = Mean(mx.array(6.0), weights) + 0.5 * Mean(mx.array(3.0), weights)
    assert isinstance(both, Mean)
    assert (both.total.item(), both.weight.item()) == (7.5, 3.0)
    three = A + 1 + mx.array(2.0) + B - 3.0
    assert isinstance(three, MeanSum)
    assert len(three.terms) == 3


def test_a_sum_is_a_tree_of_arrays_for_mlx():
    def loss(x):
        return Mean.of(x) + 0.1 * Mean.of(x, x > 1) + mx.mean(x)

    x = mx.arange(4.0)
    want = 1.5 + 0.1 * 2.5 + 1.5
    assert isinstance(mx.compile(loss)(x), MeanSum)
    assert mx.compile(loss)(x).value.item() == pytest.approx(want)
    np.testing.assert_allclose(mx.vmap(lambda x: loss(x).value)(mx.stack([x, x])), [want, want], 1e-6)
    slope = mx.grad(lambda x: loss(x).value)(x)
    np.testing.assert_allclose(slope, [0.5, 0.5, 0.55, 0.55], 1e-6)
    total, weight = Mean.of(x)
    assert (total.item(), weight.item()) == (6, 4)


@pytest.mark.parametrize(
    "call",
    [
        lambda mean: mean * mean,
        lambda mean: mean * (1, 2),
        lambda mean: operator.add(mean, (1, 2)),
        lambda mean: operator.add((1, 2), mean),
        lambda mean: mean + None,
        lambda mean: mean * "2",
        lambda mean: mean * True,
        lambda mean: 1 / mean,
        lambda mean: mean / mean,
        lambda mean: np.ones(2) * mean,
        lambda mean: mean * mx.ones(2),
        lambda mean: mean * mx.array(True),
        lambda mean: mean < mean,
        lambda mean: mean >= 1,
        lambda mean: mean == mean,
        lambda mean: mean != 0,
        lambda mean: 1.0 in mean,
        lambda mean: mean**2,
        lambda mean: Mean.merge(mean, (1, 2)),
    ],
)
@pytest.mark.parametrize("mean", [A, A + B])
def test_what_else_a_tuple_would_do_is_refused(call, mean):
    with pytest.raises(TypeError):
        call(mean)


def test_refusals_say_what_is_possible():
    with pytest.raises(TypeError, match=r"^Mean: \* .* Mean: .* mean\.value"):
        A * B
    with pytest.raises(TypeError, match=r"^Mean: \+ .*0-d array, got .* shape \(2,\)"):
        A + mx.ones(2)
    with pytest.raises(ValueError, match=r"^Mean: \* .*finite number, got nan"):
        A * float("nan")
    with pytest.raises(ZeroDivisionError):
        A / 0
    with pytest.raises(ValueError, match=r"^Mean.merge: every part .*, got \[1, 2\]"):
        Mean.merge(A, A + B)
