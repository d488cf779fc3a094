"""Training in several processes: agreement of their states, watched, evaluated, and stored."""

from functools import partial

from purestep._parallel.agreement import check
from purestep._parallel.merging import merged
from purestep._parallel.states import divided, gathered
from purestep._parallel.watchdog import Watchdog, watchdog

__all__ = [
    "check",
    # Evaluation
    "merged",
    # Ranks that die or hang
    "watchdog",
    "Watchdog",
    # States of `sharded`
    "gathered",
    "divided",
]

__dir__ = partial(sorted, __all__)
