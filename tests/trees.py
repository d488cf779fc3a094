"""Random trees for the laws, and comparisons to the bit."""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from hypothesis import strategies as st

from purestep import tree


class Pair(NamedTuple):
    """A NamedTuple to find in trees."""

    first: Any
    second: Any


FLOATS = (mx.float32, mx.bfloat16, mx.float16)
SHAPES = ((), (3,), (2, 3), (0,), (2, 0, 3))
KEYS = st.one_of(
    st.sampled_from(["w", "bias", "0", "12", "a.b", "", "with space", 'q"uote', "é"]), st.integers(0, 3)
)


def array(seed: int, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Return normal numbers that depend on the arguments alone."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return mx.array(values).astype(dtype)


def arrays(dtypes: tuple[mx.Dtype, ...] = FLOATS) -> st.SearchStrategy[mx.array]:
    """Draw an array: 0-d, empty, vector or matrix."""
    return st.builds(array, st.integers(0, 2**16), st.sampled_from(SHAPES), st.sampled_from(dtypes))


def containers(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw a tree of these leaves, with None and empty containers in it."""
    return st.recursive(
        st.one_of(leaf, leaf, leaf, st.none()),
        lambda below: st.one_of(
            st.lists(below, max_size=3),
            st.lists(below, max_size=3).map(tuple),
            st.dictionaries(KEYS, below, max_size=3),
            st.builds(Pair, below, below),
        ),
        max_leaves=6,
    )


def parameter_trees() -> st.SearchStrategy[Any]:
    """Draw a dict with at least one non-empty floating array in it."""
    return st.fixed_dictionaries(
        {
            "always": st.builds(
                array, st.integers(0, 99), st.sampled_from([(3,), (2, 3)]), st.sampled_from(FLOATS)
            )
        },
        optional={"more": containers(arrays()), "0": containers(arrays())},
    )


def bits(value: mx.array) -> tuple[Any, ...]:
    """Return an array as something that compares to the bit, NaN included."""
    raw = value.view(mx.uint16) if value.dtype == mx.bfloat16 else value
    return tree.dtype_name(value.dtype), value.shape, bytes(memoryview(raw))


def snapshot(value: Any) -> list[tuple[Any, ...]]:
    """Return a tree's paths and bits."""
    return [(path, *bits(leaf)) for path, leaf in tree.items(value)]


def same_bits(first: Any, second: Any) -> bool:
    """Tell whether two trees are built alike and hold the same bits."""
    return tree.alike(first, second) and snapshot(first) == snapshot(second)


def like(params: Any, seed: int) -> Any:
    """Return other numbers of the same structure, shapes and dtypes."""
    counter = iter(range(seed, seed + 10_000))
    return tree.map(lambda p: array(next(counter), p.shape, p.dtype), params)
