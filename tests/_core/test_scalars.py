"""Counts stop at the largest int32, and differences are computed as integers."""

import mlx.core as mx
import pytest

from purestep._core import scalars

MOST = 2**31 - 1


@pytest.mark.parametrize(
    ("count", "by", "want"),
    [(0, 1, 1), (MOST - 1, 1, MOST), (MOST, 1, MOST), (MOST, 0, MOST), (MOST - 1, 5, MOST)],
)
def test_a_count_stays_at_the_largest_int32(count, by, want):
    for step in (by, mx.array(by)):
        got = scalars.increment(mx.array(count, mx.int32), step)
        assert (got.item(), got.dtype) == (want, mx.int32)


@pytest.mark.parametrize(
    ("count", "begin", "longest", "want"),
    [
        (mx.array(2**24 + 1), 2**24, 0, 1),
        (2**24 + 1, 2**24, 0, 1),
        (2**40 + 1, 2**40, 0, 1),
        (mx.array(3), 2**33, 0, 3 - 2**33),
        (mx.array(MOST), 0, 2**33, MOST),
        (mx.array(1, mx.uint32), 3, 0, -2),
        (mx.array(1, mx.int8), 300, 0, -299),
        (mx.array(2.5), 1, 0, 1.5),
    ],
)
def test_a_difference_is_exact_whatever_the_dtype(count, begin, longest, want):
    assert scalars.elapsed(count, begin, longest).item() == want
