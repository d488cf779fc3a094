"""What is wrong with the leaves of a tree, found in one evaluation."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import tree
from purestep._core.packing import unpacked
from purestep._core.types import Tree

_BITS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}
LEAST = 3  # rows before which nothing is called exploding


class Leaf(NamedTuple):
    """What is known of one leaf.

    Attributes:
        norm: its Euclidean norm, NaN or infinite if an element is.
        bits: a checksum of its bits.
    """

    norm: float
    bits: tuple[int, int]


class Health(NamedTuple):
    """The paths of leaves that are not well.

    >>> Health(zero=["embedding.weight"]).zero
    ['embedding.weight']

    Attributes:
        nonfinite: with a NaN or an infinity.
        zero: with a gradient of zero in every measured step; without such metrics, with no bit changed.
        exploding: with a norm of more than `factor` times the median of the rows before.
    """

    nonfinite: Sequence[str] = ()
    zero: Sequence[str] = ()
    exploding: Sequence[str] = ()


def examined(values: Tree) -> dict[str, Leaf]:
    """Return the norm and the checksum of each floating-point leaf by path. Waits for the device once."""
    found = tree.items(unpacked(values))
    named = [(path, leaf) for path, leaf in found if mx.issubdtype(leaf.dtype, mx.inexact)]
    if not named:
        return {}
    norms = [mx.sqrt(mx.square(mx.abs(leaf).astype(mx.float32)).sum()) for _, leaf in named]
    sums = [part for _, leaf in named for part in _bits(leaf)]
    stacked = mx.stack(norms), mx.stack(sums)
    mx.eval(stacked)
    figures: Any = stacked[0].tolist()
    checksums: Any = stacked[1].tolist()
    return {
        path: Leaf(norm, (checksums[2 * index], checksums[2 * index + 1]))
        for index, ((path, _), norm) in enumerate(zip(named, figures, strict=True))
    }


def judged_values(
    values: Mapping[str, Sequence[float]], before: Mapping[str, Sequence[float]], factor: float
) -> Health:
    """Judge the gradient norms of each leaf or layer.

    Args:
        values: the norms of the steps since the row before, by path.
        before: the norms of earlier rows, by path.
        factor: above the median of the rows before, a norm is exploding.

    >>> judged_values({"a": [0.0, 0.0], "b": [1.0, 50.0]}, {"b": [1.0, 2.0, 3.0]}, 10.0)
    Health(nonfinite=[], zero=['a'], exploding=['b'])
    """
    present = {path: norms for path, norms in values.items() if norms}
    broken = [path for path, norms in present.items() if any(norm - norm != 0.0 for norm in norms)]
    zero = [path for path, norms in present.items() if not any(norms)]
    exploding = [
        path
        for path, norms in present.items()
        if path not in broken and _explodes(max(norms), before.get(path, ()), factor)
    ]
    return Health(broken, zero, exploding)


def judged_leaves(
    now: Mapping[str, Leaf],
    last: Mapping[str, Leaf],
    before: Mapping[str, Sequence[float]],
    factor: float,
) -> Health:
    """Judge the parameters: as `judged_values`, but `zero` are those without a changed bit.

    If no bit of any leaf has changed, there was no update, and none is called zero.
    """
    found = judged_values({path: [leaf.norm] for path, leaf in now.items()}, before, factor)
    unchanged = [path for path, leaf in now.items() if path in last and last[path].bits == leaf.bits]
    return found._replace(zero=[] if len(unchanged) == len(now) else unchanged)


def _explodes(norm: float, before: Sequence[float], factor: float) -> bool:
    sound = [each for each in before if each - each == 0.0]
    return len(sound) >= LEAST and norm > factor * median(sound) > 0.0


def _bits(leaf: mx.array) -> tuple[mx.array, mx.array]:
    """Return two sums over the bits of all elements; both stay the same by chance about never."""
    if leaf.dtype == mx.complex64:
        leaf = leaf.view(mx.float32)
    bits = leaf.view(_BITS[leaf.dtype.size]).astype(mx.uint32)
    return bits.sum(), (bits * (bits >> 7)).sum()
