"""A random order as a function."""

from collections import Counter

import pytest

from purestep._data.core import permutation


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1000, 4097])
def test_an_order_has_every_number_once(count):
    for seed, epoch in ((0, 0), (2**64 - 1, 3)):
        assert sorted(permutation.shuffled(seed, epoch, range(count), count)) == list(range(count))


def test_orders_are_uniform_over_seeds_and_epochs():
    """Chi-square, 0.999 quantile of 23 and of 399 degrees of freedom: 49.7 and 490."""
    orders = Counter(
        tuple(permutation.shuffled(seed % 100, seed // 100, range(4), 4)) for seed in range(4800)
    )
    assert sum((orders[each] - 200) ** 2 / 200 for each in orders) + 200 * (24 - len(orders)) < 49.7
    pairs = Counter(tuple(permutation.shuffled(seed, 1, (7, 8), 10**9)) for seed in range(40_000))
    cells = Counter((a * 20 // 10**9, b * 20 // 10**9) for a, b in pairs)
    assert sum((cells[i, j] - 100) ** 2 / 100 for i in range(20) for j in range(20)) < 490


def test_every_order_of_three_numbers_is_equally_likely():
    orders = Counter(tuple(permutation.shuffled(seed, 0, range(3), 3)) for seed in range(6000))
    assert sum((count - 1000) ** 2 / 1000 for count in orders.values()) < 20.5  # 0.999, 5 degrees
    assert len(orders) == 6


def test_orders_are_bijections_for_every_small_count_and_around_the_limit_of_the_simple_way():
    for count in [*range(1, 40), *range(254, 262), 1023]:
        assert sorted(permutation.shuffled(3, 1, range(count), count)) == list(range(count))


def test_orders_are_the_same_everywhere():
    """Recorded once: a checkpoint of one machine continues on another."""
    assert permutation.shuffled(0, 0, range(5), 5) == [0, 1, 2, 3, 4]
    assert permutation.shuffled(0, 1, [0, 1, 10**9 - 1], 10**9) == [491026971, 923066427, 836561203]
