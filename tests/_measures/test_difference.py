"""Differences of arrays: bits, units of the last place, absolute, relative."""

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from purestep._measures.difference import Difference, difference

NAN, INF = mx.nan, mx.inf


@pytest.mark.parametrize(
    ("first", "second", "want"),
    [
        ([1.0, NAN, INF], [1.0, NAN, INF], Difference(True, 0.0, 0.0, 0)),
        ([0.0], [-0.0], Difference(False, 0.0, 0.0, 0)),
        ([3.0, INF], [4.0, INF], Difference(False, 1.0, 0.25, 1 << 22)),
        ([INF], [1.0], Difference(False, INF, INF, (255 - 127) << 23)),
        ([NAN, 1.0], [1.0, 1.0], Difference(False, NAN, NAN, 0)),
        ([], [], Difference(True, 0.0, 0.0, 0)),
    ],
)
def test_by_hand(first, second, want):
    got = difference(mx.array(first, mx.float32), mx.array(second, mx.float32))
    for a, b in zip(got, want, strict=True):
        assert a == b or (math.isnan(a) and math.isnan(b))


@given(st.floats(width=32, allow_nan=False), st.integers(0, 5))
def test_ulps_count_the_floats_between(start, steps):
    end = np.float32(start)
    for _ in range(steps):
        end = np.nextafter(end, np.float32(np.inf))
    if not np.isinf(end):
        # -0.0 and 0.0 are equal, so both have the same distance to a third number.
        assert difference(mx.array([start]), mx.array([float(end)])).ulps == steps


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_is_measured_in_its_own_units(dtype):
    one = mx.array([1.0], dtype)
    next_up = (one.view(mx.uint16) + 1).view(dtype)
    assert difference(one, next_up).ulps == 1
    assert difference(one, next_up).max_abs == (next_up.astype(mx.float32) - 1).item()
    assert difference(one, -one).max_abs == 2.0


def test_integers_booleans_and_complex_numbers_have_no_ulps():
    for a, b, apart in (
        (mx.array([1, 2], mx.uint32), mx.array([3, 2], mx.uint32), 2.0),
        (mx.array([True]), mx.array([False]), 1.0),
        (mx.array([1 + 2j]), mx.array([1 + 3j]), 1.0),
        (mx.array(7), mx.array(4), 3.0),
    ):
        got = difference(a, b)
        assert (got.same_bits, got.max_abs, got.ulps) == (False, apart, None)
        assert difference(a, a) == Difference(True, 0.0, 0.0, None)
