"""Trees of arrays: paths, maps that keep the containers, arithmetic, and specs.

A tree is a dict, list, tuple, NamedTuple or `None`, nested; every other value is a leaf. `None` and
empty containers hold no leaves and stay in place.
"""

from purestep._core.tree.mapping import alike as alike
from purestep._core.tree.mapping import fitted as fitted
from purestep._core.tree.mapping import leaves as leaves
from purestep._core.tree.mapping import map as map
from purestep._core.tree.mapping import map_with_path as map_with_path
from purestep._core.tree.mapping import matches as matches
from purestep._core.tree.mapping import unflatten as unflatten
from purestep._core.tree.mapping import where as where
from purestep._core.tree.naming import children as children
from purestep._core.tree.naming import fields as fields
from purestep._core.tree.naming import is_namedtuple as is_namedtuple
from purestep._core.tree.naming import items as items
from purestep._core.tree.naming import join as join
from purestep._core.tree.naming import key_segment as key_segment
from purestep._core.tree.naming import paths as paths
from purestep._core.tree.numbers import added as added
from purestep._core.tree.numbers import cast as cast
from purestep._core.tree.numbers import size as size
from purestep._core.tree.numbers import zeros_like as zeros_like
from purestep._core.tree.specs import ArraySpec as ArraySpec
from purestep._core.tree.specs import NodeSpec as NodeSpec
from purestep._core.tree.specs import Spec as Spec
from purestep._core.tree.specs import differences as differences
from purestep._core.tree.specs import dtype_name as dtype_name
from purestep._core.tree.specs import from_plain as from_plain
from purestep._core.tree.specs import spec as spec
from purestep._core.tree.specs import spec_children as spec_children
from purestep._core.tree.specs import spec_items as spec_items
from purestep._core.tree.specs import spec_nodes as spec_nodes
from purestep._core.tree.specs import to_plain as to_plain
