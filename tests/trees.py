"""What many tests import, in one place: the library's own samples, strategies and comparisons."""

from purestep.testing import bits as snapshot
from purestep.testing import like, same_bits
from purestep.testing.samples import Pair, array
from purestep.testing.strategies import FLOATS, arrays, containers, parameter_trees

__all__ = [
    "FLOATS",
    "Pair",
    "array",
    "arrays",
    "containers",
    "like",
    "parameter_trees",
    "same_bits",
    "snapshot",
]
