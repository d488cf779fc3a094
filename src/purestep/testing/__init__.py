"""For tests of your own: laws to hold a transform to, trees to try it on, comparisons to the bit.

`strategies` needs hypothesis and is imported by its full name, `purestep.testing.strategies`.
"""

from purestep.testing import laws
from purestep.testing.assertions import bits, first_difference, same_bits
from purestep.testing.samples import like

__all__ = ["bits", "first_difference", "laws", "like", "same_bits"]


def __dir__() -> list[str]:
    return sorted(__all__)
