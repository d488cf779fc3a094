"""Trees of arrays: paths, maps that keep the containers, arithmetic, and specs.

A tree is a dict, list, tuple, NamedTuple or `None`, nested; every other value is a leaf. `None` and
empty containers hold no leaves and stay in place.

A path is an unambiguous name of a leaf, such as `opt_state.1.mu.layers.0.weight`. NamedTuple fields and most
dict keys are written as they are, and list and tuple positions as digits. Integer dict keys are in brackets
(`[0]`). Dict keys that could be mistaken for a position or for several segments are JSON strings (`"0"`,
`"a.b"`).
"""

from functools import partial

from purestep._core.norms import norm
from purestep._core.tree import (
    ArraySpec,
    NodeSpec,
    added,
    alike,
    cast,
    children,
    differences,
    dtype_name,
    fields,
    fitted,
    from_plain,
    is_namedtuple,
    items,
    join,
    key_segment,
    leaves,
    map,
    map_with_path,
    matches,
    paths,
    size,
    spec,
    spec_children,
    spec_items,
    spec_nodes,
    to_plain,
    unflatten,
    where,
    zeros_like,
)

__all__ = [
    # Maps
    "map",
    "map_with_path",
    "leaves",
    "unflatten",
    "where",
    "fitted",
    # Paths
    "items",
    "paths",
    "fields",
    "children",
    "is_namedtuple",
    "join",
    "key_segment",
    # Comparisons
    "alike",
    "matches",
    "differences",
    # Arithmetic
    "added",
    "cast",
    "norm",
    "size",
    "zeros_like",
    # Specs: trees without their numbers
    "spec",
    "ArraySpec",
    "NodeSpec",
    "dtype_name",
    "spec_children",
    "spec_items",
    "spec_nodes",
    "to_plain",
    "from_plain",
]

__dir__ = partial(sorted, __all__)
