"""Trees of arrays: their paths, and maps that keep every container as it was.

A tree is a dict, list, tuple, NamedTuple or `None`, nested; everything else is a leaf. `None` and
empty containers hold no leaves and stay where they are.

A path names a leaf in one unambiguous string: `opt_state.1.mu.layers.0.weight`. NamedTuple fields and
plain dict keys are written bare, list and tuple positions as digits, dict keys that would read as
something else in JSON quotes (`"0"`, `"a.b"`), and integer dict keys in brackets (`[0]`).
"""

from functools import partial

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
    norm,
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
