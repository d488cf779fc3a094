"""Hypothesis strategies: parameter trees, gradients, batches, and compositions of transforms."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from hypothesis import strategies as st

from purestep._core.types import Batch, Params
from purestep._transforms.core.base import GradientTransform
from purestep._transforms.core.combining import chain
from purestep.testing.samples import Pair, array, like

FLOATS = (mx.float32, mx.bfloat16, mx.float16)
SHAPES = ((), (3,), (2, 3), (0,), (2, 0, 3))
KEYS = st.one_of(
    st.sampled_from(["w", "bias", "0", "12", "a.b", "", "with space", 'q"uote', "é"]), st.integers(0, 3)
)


def arrays(
    dtypes: Sequence[mx.Dtype] = FLOATS, shapes: Sequence[tuple[int, ...]] = SHAPES
) -> st.SearchStrategy[mx.array]:
    """Draw an array of normal numbers: 0-d, empty, vector or matrix."""
    return st.builds(array, st.integers(0, 2**16), st.sampled_from(shapes), st.sampled_from(dtypes))


def containers(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw a tree with these leaves, in all kinds of containers, some of them `None` or empty."""
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


def parameter_trees(dtypes: Sequence[mx.Dtype] = FLOATS) -> st.SearchStrategy[Params]:
    """Draw a dict with at least one non-empty floating-point array."""
    return st.fixed_dictionaries(
        {"always": arrays(dtypes, ((3,), (2, 3)))},
        optional={"more": containers(arrays(dtypes)), "0": containers(arrays(dtypes))},
    )


def gradients_for(params: Params) -> st.SearchStrategy[Params]:
    """Draw numbers with the structure, shapes and dtypes of the parameters."""
    return st.integers(0, 2**12).map(lambda seed: like(params, seed))


def batches(shapes: dict[str, tuple[int, ...]], size: int) -> st.SearchStrategy[Batch]:
    """Draw a batch of `size` rows: float32 arrays [size, *shape] by name."""
    drawn = {name: arrays((mx.float32,), ((size, *shape),)) for name, shape in shapes.items()}
    return st.fixed_dictionaries(drawn)


def compositions(
    makers: Sequence[Callable[[], GradientTransform]], max_size: int = 4
) -> st.SearchStrategy[Callable[[], GradientTransform]]:
    """Draw a function that makes a chain, or a chain of chains, of these transforms."""
    one = st.sampled_from(list(makers))

    def chained(below: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        parts = st.lists(below, min_size=1, max_size=3)
        return parts.map(lambda made: lambda: chain(*(make() for make in made)))

    return st.recursive(one, chained, max_leaves=max_size)
