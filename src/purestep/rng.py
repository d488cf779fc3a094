"""Randomness as a function of a key.

A key is a uint32 array of shape [2], as made by `mx.random.key`.
"""

from functools import partial

from purestep._core.rng import check_key, fold_in, forbidden, from_seed, scope

__all__ = [
    "check_key",
    "fold_in",
    "forbidden",
    "from_seed",
    "scope",
]

__dir__ = partial(sorted, __all__)
