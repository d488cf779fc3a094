"""Populations of states, for `population`: their members, selection and perturbation, as pure functions."""

from functools import partial

from purestep._population.choosing import perturb, ranked, replace, select, truncated
from purestep._population.members import create, member, members, size, stacked
from purestep._population.reducing import by_member, evaluate, reduced, summary

__all__ = [
    # A population of states, and its members
    "create",
    "stacked",
    "member",
    "members",
    "size",
    # Population based training
    "ranked",
    "truncated",
    "select",
    "replace",
    "perturb",
    # Metrics of all members
    "reduced",
    "summary",
    "by_member",
    "evaluate",
]

__dir__ = partial(sorted, __all__)
