"""Losses of many rows, computed in blocks of rows on a CPU.

Arrays of one block stay in the processor's caches. MLX also keeps freed memory of up to 32 MB only for later
arrays of a CPU: larger arrays are new memory each time, which takes longer than most operations.
"""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import hardware
from purestep._core.tracing.custom import custom_function

_ELEMENTS = 1 << 19  # of a block


def by_rows(
    losses: Callable[[mx.array, mx.array], mx.array], logits: mx.array, targets: mx.array
) -> mx.array:
    """Return `losses(logits, targets)`, float32 [...], computed in blocks where that is faster.

    Args:
        losses: from logits [rows, classes] and targets [rows] to [rows], each from its row alone. It gets
            arrays of more axes if there is one block.
        logits: [..., classes].
        targets: [...].
    """
    classes = logits.shape[-1]
    length = max(1, _ELEMENTS // max(1, classes))
    if hardware.on_gpu() or targets.size < 2 * length:
        return losses(logits, targets)
    length = math.ceil(targets.size / math.ceil(targets.size / length))  # blocks of about the same length
    labels = targets.reshape(-1)
    found = [
        losses(rows, labels[start : start + length])
        for start, rows in zip(
            range(0, labels.size, length), _split(logits.reshape(-1, classes), length), strict=True
        )
    ]
    return mx.concatenate(found).reshape(targets.shape)


def _split(logits: mx.array, length: int) -> list[mx.array]:
    """Return blocks of rows, whose gradient is one concatenation; that of slices is one array for each."""

    @custom_function
    def split(logits: mx.array) -> list[mx.array]:
        return [logits[start : start + length] for start in range(0, logits.shape[0], length)]

    @split.vjp
    def _(logits: mx.array, cotangents: Any, outputs: Any) -> mx.array:
        return mx.concatenate(cotangents)

    found: Any = split(logits)
    return found
