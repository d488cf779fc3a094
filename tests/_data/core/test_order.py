"""A random order as a function."""

from collections import Counter

import pytest

from purestep._data.core import order


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1000, 4097])
def test_an_order_has_every_number_once(count):
    for seed, epoch in ((0, 0), (2**64 - 1, 3)):
        assert sorted(order.shuffled(seed, epoch, range(count), count)) == list(range(count))


def test_orders_are_uniform_over_seeds_and_epochs():
    """Chi-square, 0.999 quantile of 23 and of 399 degrees of freedom: 49.7 and 490."""
    orders = Counter(tuple(order.shuffled(seed % 100, seed // 100, range(4), 4)) for seed in range(4800))
    assert sum((orders[each] - 200) ** 2 / 200 for each in orders) + 200 * (24 - len(orders)) < 49.7
    pairs = Counter(tuple(order.shuffled(seed, 1, (7, 8), 10**9)) for seed in range(40_000))
    cells = Counter((a * 20 // 10**9, b * 20 // 10**9) for a, b in pairs)
    assert sum((cells[i, j] - 100) ** 2 / 100 for i in range(20) for j in range(20)) < 490
