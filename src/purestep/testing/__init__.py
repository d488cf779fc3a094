"""For tests of your own: laws to hold a transform to, trees to try it on, comparisons to the bit.

`strategies` needs hypothesis and is imported by its full name, `purestep.testing.strategies`.
"""

from purestep.testing import laws as laws
from purestep.testing.assertions import bits as bits
from purestep.testing.assertions import first_difference as first_difference
from purestep.testing.assertions import same_bits as same_bits
from purestep.testing.samples import like as like
