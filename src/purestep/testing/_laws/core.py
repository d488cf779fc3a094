"""The parts of every law: its error, an update to try, and comparisons."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import GradientTransform, dropping_unknown
from purestep.testing.assertions import first_difference, same_bits
from purestep.testing.samples import like

Make = Callable[[], GradientTransform]
Law = Callable[[Make, Params], None]


class LawBroken(AssertionError):  # noqa: N818 - the broken law is not an error of the program
    """Raised when a transform breaks a law.

    Attributes:
        law: the name of the law, a function of `purestep.testing.laws`.
    """

    def __init__(self, law: str, what: str):
        super().__init__(f"{law}: {what}")
        self.law = law


def updated(
    transform: GradientTransform, gradients: Updates, state: Tree, params: Params
) -> tuple[Updates, Tree]:
    """Return the result of an update with the keyword arguments `value` and `weight`, as in `train_step`."""
    # `taking_extra` would pass copies, and hide an update that writes into its arguments.
    update = dropping_unknown(transform.update)
    return update(gradients, state, params, value=mx.array(0.5), weight=mx.array(2.0))


def run(transform: GradientTransform, params: Params, updates: int) -> tuple[Updates, Any]:
    """Return the last updates and the state after a number of updates."""
    state, out = transform.init(params), None
    for number in range(updates):
        out, state = updated(transform, like(params, number), state, params)
    return out, state


def unless(held: bool, law: str, what: str) -> None:
    """Raise `LawBroken` unless a condition held."""
    if not held:
        raise LawBroken(law, what)


def same(law: str, got: Tree, want: Tree, when: str) -> None:
    """Raise `LawBroken` unless two trees are equal bit for bit."""
    if not same_bits(got, want):
        raise LawBroken(law, f"{when}: {first_difference(got, want, factor=0.0) or 'other bits'}")


def close(law: str, got: Tree, want: Tree, when: str) -> None:
    """Raise `LawBroken` unless two trees are equal within the tolerance of their dtypes."""
    difference = first_difference(got, want)
    unless(difference is None, law, f"{when}: {difference}")
