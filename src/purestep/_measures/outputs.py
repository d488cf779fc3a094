"""Sums over the rows of one output of a layer."""

import math

import mlx.core as mx

from purestep._core import sums
from purestep._layers.observing import Statistics


def statistics(out: mx.array, given: mx.array | None, eps: float) -> Statistics:
    """Return sums over parts of the rows of an output, where a row is a vector along the last axis.

    Args:
        out: the output.
        given: the input; `None` if it is not measured.
        eps: an element is large if its absolute value is above `eps`, or if it is NaN.

    Returns:
        `totals`, float32 [parts, 3 or 4]: the number of rows, the sum of their norms, the sum of all
        elements and, with an input, the sum of the norms of its rows. `large`, [parts, units]: the number of
        large elements of each unit.
    """
    rows = _rows(out)
    totals = [mx.array(float(rows.shape[0])), _norms(rows), sums.total(rows)]
    if given is not None:
        totals.append(_norms(_rows(given)))
    large = (~(mx.abs(rows) <= eps)).sum(axis=0, keepdims=True)  # int32: exact
    return {"totals": mx.stack(totals)[None], "large": large}


def _norms(rows: mx.array) -> mx.array:
    return sums.total(mx.sqrt(sums.total(mx.square(rows), axis=1)))


def _rows(x: mx.array) -> mx.array:
    """Return an array as float32 vectors along its last axis: [rows, units]."""
    x = x.astype(mx.float32)
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) if x.ndim else x.reshape(1, 1)
