"""Losses of many rows, computed in blocks of rows on a CPU."""

from collections.abc import Callable

import mlx.core as mx

from purestep._core import hardware
from purestep._layers import blocks


def in_blocks(
    losses: Callable[[mx.array, mx.array], mx.array], logits: mx.array, targets: mx.array
) -> mx.array:
    """Return `losses(logits, targets)`, float32 [...], computed in blocks where that is faster.

    Args:
        losses: from logits [rows, classes] and targets [rows] to [rows], each from its row alone. It gets
            arrays of more axes if there is one block.
        logits: [..., classes].
        targets: [...], at least one.
    """
    length = blocks.length(targets.size, logits.shape[-1])
    if hardware.on_gpu() or length >= targets.size:
        return losses(logits, targets)
    parts = blocks.split(logits.reshape(-1, logits.shape[-1]), length)
    labels = blocks.split(targets.reshape(-1), length)
    return mx.concatenate([losses(*each) for each in zip(parts, labels, strict=True)]).reshape(targets.shape)
