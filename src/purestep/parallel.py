"""Training in several processes: what all of them must agree on."""

from functools import partial

from purestep._parallel.agreement import check

__all__ = [
    "check",
]

__dir__ = partial(sorted, __all__)
