"""The estimate of the distance to the solution, which D-Adaptation and Prodigy share."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import checks, collective, sums, tree
from purestep._core.types import Tree
from purestep._transforms.core.moments import bias_correction


def check_betas(caller: str, betas: Any) -> tuple[float, float]:
    """Return the two decays; each must be in [0, 1)."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise checks.error(caller, f"betas must be two numbers, got {betas!r}")
    b1, b2 = (checks.number(caller, "betas", beta, least=0, below=1) for beta in betas)
    return b1, b2


def correction(b1: float, b2: float, count: mx.array) -> mx.array:
    """Return `sqrt(1 - b2 ** count) / (1 - b1 ** count)`: Adam's two bias corrections as one factor."""
    return mx.sqrt(bias_correction(b2, count)) / bias_correction(b1, count)


def total(fn: Callable[..., mx.array], *trees: Tree) -> mx.array:
    """Apply `fn` to the leaves of the trees and return the sum of all elements, 0-d float32.

    >>> total(mx.multiply, {"w": mx.array([1.0, 2.0])}, {"w": mx.array([3.0, 4.0])})
    array(11, dtype=float32)
    """
    return collective.completed(tree.added([sums.total(x) for x in tree.leaves(tree.map(fn, *trees))]))


def larger(old: mx.array, numerator: mx.array, denominator: mx.array) -> mx.array:
    """Return `max(old, numerator / denominator)`, or `old` while the denominator is 0.

    >>> larger(mx.array([2.0, 2.0]), mx.array([6.0, 0.0]), mx.array([2.0, 0.0]))
    array([3, 2], dtype=float32)
    """
    quotient = numerator / mx.where(denominator > 0, denominator, 1.0)
    return mx.maximum(old, mx.where(denominator > 0, quotient, 0.0))
