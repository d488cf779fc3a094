"""The order of evaluation: arrays that are computed only after others."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx


def after(arrays: Sequence[mx.array], before: Sequence[mx.array]) -> list[mx.array]:
    """Return arrays that are evaluated only after `before`.

    This works like `mx.depends`, which has no rule for `mx.vmap`. Under `mx.vmap` only the order is lost.
    """
    count = len(arrays)
    ordered: Any = mx.custom_function(lambda *given: list(given[:count]))

    @ordered.vjp
    def _(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return [*cotangents, *(mx.zeros_like(array) for array in primals[count:])]

    @ordered.vmap
    def _(inputs: Any, axes: Any) -> Any:
        return list(inputs[:count]), list(axes[:count])

    return ordered(*arrays, *before)
