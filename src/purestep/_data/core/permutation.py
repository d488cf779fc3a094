"""A random order as a function: any place of it is found without the others."""

import hashlib
import math
from collections.abc import Iterable
from functools import lru_cache

_ROUNDS = 8
_FEW = 256  # of up to so many numbers every order is equally likely; they are shuffled one by one
_BITS = 2**64 - 1


def shuffled(seed: int, epoch: int, places: Iterable[int], count: int) -> list[int]:
    """Return the numbers at some places of a random order of `range(count)`.

    A number is written with two digits, in the bases `a` and `b` with `a * b >= count`. Each round adds a
    hash of one digit to the other, which can be undone, so the whole is a permutation. Results outside the
    range, fewer than `a`, go through the rounds again. Up to 256 numbers are shuffled one by one instead
    (Fisher and Yates), so that every order of a few numbers is equally likely.

    >>> sorted(shuffled(0, 1, range(5), 5))
    [0, 1, 2, 3, 4]
    """
    if count <= _FEW:
        order = _shuffled_few(seed, epoch, count)
        return [order[place] for place in places]
    base = math.isqrt(count)
    other = -(-count // base)
    digest = hashlib.blake2b(f"order/{seed}/{epoch}/{count}".encode(), digest_size=8 * _ROUNDS).digest()
    keys = [int.from_bytes(digest[8 * n : 8 * n + 8], "little") for n in range(_ROUNDS)]
    return [_placed(place, count, base, other, keys) for place in places]


@lru_cache(maxsize=16)
def _shuffled_few(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    order, key = list(range(count)), draw(seed, epoch)
    for last in range(count - 1, 0, -1):
        other = _mixed(last, key) % (last + 1)
        order[last], order[other] = order[other], order[last]
    return tuple(order)


def draw(seed: int, epoch: int) -> int:
    """Return a random number in [0, 2**64), a function of both.

    >>> draw(0, 1) == draw(0, 1), draw(0, 1) == draw(1, 0)
    (True, False)
    """
    digest = hashlib.blake2b(f"draw/{seed}/{epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _placed(number: int, count: int, base: int, other: int, keys: list[int]) -> int:
    while True:
        high, low = divmod(number, base)
        for turn in range(0, _ROUNDS, 2):
            low = (low + _mixed(high, keys[turn])) % base
            high = (high + _mixed(low, keys[turn + 1])) % other
        number = high * base + low
        if number < count:
            return number


def _mixed(digit: int, key: int) -> int:
    """Return a hash of a digit under a key: two multiplications of 64 bits, as in SplitMix64."""
    mixed = ((digit ^ key) * 0x9E3779B97F4A7C15) & _BITS
    mixed = ((mixed ^ (mixed >> 32)) * 0xD6E8FEB86659FD93) & _BITS
    return mixed ^ (mixed >> 32)
