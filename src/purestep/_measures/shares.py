"""Shares of elements that are zero or not finite."""

from collections.abc import Callable

import mlx.core as mx

from purestep._core import checks, cuda, tree
from purestep._core.norms import is_nonfinite, is_zero, partial_sums
from purestep._measures.groups import (
    Grouped,
    Groups,
    check_groups,
    group_counts,
    group_sums,
    layer_of,
    sizes,
)
from purestep._steps.core.measuring import Measurement, Moment

_TREES = ("gradients", "updates", "params", "new_params")


def nonfinite_share(
    of: str = "gradients", *, by: Groups = layer_of, every: int = 1, name: str = "nonfinite_share"
) -> Measurement:
    """Measure the share of NaN and infinite elements of each layer.

    Args:
        of: `"gradients"`, `"updates"`, `"params"` (before the update) or `"new_params"`.
        by: as in `grad_norms`.
        every: steps from one measurement to the next.
        name: the metrics are `name/group`.

    >>> nonfinite_share("updates", name="bad").name
    'bad'
    """
    return _share("nonfinite_share", of, is_nonfinite, by, every, name)


def zero_share(
    of: str = "gradients", *, by: Groups = layer_of, every: int = 1, name: str = "zero_share"
) -> Measurement:
    """Measure the share of elements of each layer that are exactly zero.

    Args:
        of: as in `nonfinite_share`.
        by: as in `grad_norms`.
        every: steps from one measurement to the next.
        name: the metrics are `name/group`.

    >>> zero_share("params").name
    'zero_share'
    """
    return _share("zero_share", of, is_zero, by, every, name)


def _share(
    caller: str, of: str, test: Callable[[mx.array], mx.array], by: Groups, every: int, name: str
) -> Measurement:
    checks.one_of(caller, "of", of, _TREES)
    by = check_groups(caller, by)

    def measure(moment: Moment) -> dict[str, mx.array]:
        values = getattr(moment, of)
        counts = sizes(values, by)
        if cuda.serves(tree.leaves(values)):
            names, totals = group_sums(values, partial_sums(values, test), by)
            elements = mx.array([float(max(counts[name], 1)) for name in names])
            return Grouped(names, totals / elements).each()
        found = group_counts(values, test, by)
        return {group: total / max(counts[group], 1) for group, total in found.items()}

    return Measurement(name, measure, every)
