"""Trees to try a transform on, made from seeds, without hypothesis."""

from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import rng, tree
from purestep._core.types import Params


class Pair(NamedTuple):
    """A NamedTuple for trees."""

    first: Any
    second: Any


def array(seed: int, shape: tuple[int, ...], dtype: mx.Dtype = mx.float32) -> mx.array:
    """Return normal numbers that depend only on the arguments.

    >>> array(0, (2, 3)).shape
    (2, 3)
    """
    return mx.random.normal(shape, key=rng.fold_in(mx.random.key(20240607), seed)).astype(dtype)


def like(params: Params, seed: int) -> Params:
    """Return normal numbers with the same structure, shapes and dtypes, for example as gradients.

    >>> like({"w": mx.zeros((2, 3), mx.bfloat16)}, 1)["w"].dtype
    mlx.core.bfloat16
    """
    counter = iter(range(1000 * seed + 1, 1000 * seed + 1001))
    return tree.map(lambda p: array(next(counter), p.shape, p.dtype), params)


def parameters() -> list[Params]:
    """Return the trees on which `laws.check` tries a transform: nested, of mixed shapes and dtypes."""
    return [
        {"w": array(1, (3, 2)), "b": array(2, (2,))},
        {
            "layers": [{"weight": array(3, (2, 3), mx.bfloat16), "bias": None}, {}],
            "0": Pair(array(4, ()), (array(5, (4,), mx.float16),)),
            "a.b": array(6, (0, 3)),
        },
    ]
