"""Tools for your own tests: the laws of transforms, trees to try them on, and bit-exact comparisons.

`strategies` needs hypothesis and is imported by its full name, `purestep.testing.strategies`.
"""

from functools import partial

from purestep.testing import laws
from purestep.testing.assertions import bits, first_difference, same_bits
from purestep.testing.samples import like

__all__ = ["bits", "first_difference", "laws", "like", "same_bits"]

__dir__ = partial(sorted, __all__)
