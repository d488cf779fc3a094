"""Parts of arrays, rows of a table or spans of the last axis, whose gradients kernels write on an NVIDIA GPU.

In bfloat16 and float16, the gradient of a row is summed in float32, as in `reduced`.
"""

from typing import Any

import mlx.core as mx

from purestep._core.tracing.custom import custom_function, gradient_function
from purestep._layers.kernels import lookups, splits
from purestep._layers.reduced import is_reduced

_split: Any = mx.split  # the name in `mlx.core` may stand for the function below
_custom: Any = custom_function
_of_gradient: Any = gradient_function


def lookup(table: mx.array, indices: mx.array) -> mx.array:
    """Return `table[indices]`, the rows of an embedding.

    On an NVIDIA GPU, the gradient has the same bits in every run of a compiled step, for tables of two axes
    whose rows are a multiple of 16 bytes and are looked up at most 128 times on average.

    Args:
        table: [rows, ...], floating.
        indices: integers of any shape.

    >>> table = mx.zeros((2, 1), mx.bfloat16)
    >>> mx.grad(lambda table: lookup(table, mx.zeros(4000, mx.int32)).sum())(table)[0]
    array([4000], dtype=bfloat16)
    """
    if not isinstance(indices, mx.array) or not (is_reduced(table) or lookups.serves(table, indices)):
        return table[indices]

    @_custom
    def rows(table: mx.array, indices: mx.array) -> mx.array:
        return table[mx.stop_gradient(indices)]  # MLX has no forward derivative in indices, of 0 either

    @rows.vjp
    def _(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        table, indices = primals
        if lookups.serves(table, indices):
            return _summed(cotangent, indices, table), mx.zeros_like(indices)
        zeros = mx.zeros(table.shape, mx.float32)
        total = zeros.at[indices].add(cotangent.astype(mx.float32))
        return total.astype(table.dtype), mx.zeros_like(indices)

    return rows(table, indices)


@_of_gradient
def _summed(slope: mx.array, indices: mx.array, table: mx.array) -> mx.array:
    return lookups.summed(slope.astype(table.dtype), indices, table.shape[0])


@_summed.vjp
def _(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    slope, indices, table = primals
    of_slope = lookup(cotangent, indices).astype(slope.dtype)
    return of_slope, mx.zeros_like(indices), mx.zeros_like(table)


def split(a: mx.array, indices_or_sections: Any, axis: int = 0, *, stream: Any = None) -> list[mx.array]:
    """Return `mx.split(a, indices_or_sections, axis)`.

    On an NVIDIA GPU, the gradient of a split along the last axis is written by one kernel of a compiled step.

    >>> [part.shape for part in split(mx.zeros((2, 6)), 3, axis=-1)]
    [(2, 2), (2, 2), (2, 2)]
    """
    parts: Any = _split(a, indices_or_sections, axis, stream=stream)
    last = axis in (-1, a.ndim - 1) and stream is None and len(parts) > 1
    if not (last and splits.serves(a, [part.shape[-1] for part in parts])):
        return parts

    @_custom
    def split_last(a: mx.array) -> Any:
        return _split(a, indices_or_sections, -1)

    @split_last.vjp
    def _(a: mx.array, cotangents: list[mx.array], output: list[mx.array]) -> Any:
        return _joined(*cotangents)

    found: Any = split_last(a)
    return list(found)


@_of_gradient
def _joined(*parts: mx.array) -> mx.array:
    return splits.joined(parts)


@_joined.vjp
def _(parts: Any, cotangent: mx.array, output: mx.array) -> Any:
    ends, end = [], 0
    for part in parts[:-1]:
        ends.append(end := end + part.shape[-1])
    return tuple(split(cotangent, ends, -1))
