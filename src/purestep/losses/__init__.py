"""Losses: pure functions of arrays that return a `Mean`."""

from purestep.losses.cross_entropy import cross_entropy as cross_entropy
