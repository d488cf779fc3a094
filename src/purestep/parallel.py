"""Training in several processes: agreement of their states, and states that are divided."""

from functools import partial

from purestep._parallel.agreement import check
from purestep._parallel.states import divided, gathered

__all__ = [
    "check",
    # States of `sharded`
    "gathered",
    "divided",
]

__dir__ = partial(sorted, __all__)
